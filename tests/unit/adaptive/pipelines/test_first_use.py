"""What the first decode of a process traces, and what each decode teaches the next one."""

from __future__ import annotations

from collections.abc import Iterator
from threading import Thread
from types import SimpleNamespace
from typing import Any

import diffusers
import pytest
import torch
from stream_vaes import build, latents_of, shared

import adaptive
from adaptive.device.probe import build_name
from adaptive.memory import profile_trace, published
from adaptive.memory.learned_costs import LearnedCosts, costs_of_process
from adaptive.memory.profile_trace import lazy_profile, profile_of, trace_bytes
from adaptive.memory.traced_vae import TracedVae
from adaptive.types import LatentShape, MeasuredPeak, Strategy

SHAPE = LatentShape(1, 128, 16, 16, 24)
PUBLISHED = [path.stem.split(".") for path in published.FOLDER.glob("*.json")]
FAMILIES = ["ltx-0.9.0", "wan-2.1", "kl", "svd", "hunyuanvideo-1.0", "cogvideox", "cosmos"]


@pytest.fixture(autouse=True)
def no_gradients() -> Iterator[None]:
    """Pipelines decode so, and a call that needs gradients is left to the VAE."""
    with torch.no_grad():
        yield


def learned() -> LearnedCosts:
    return costs_of_process("cpu", build_name())


@pytest.mark.parametrize("name", FAMILIES)
def test_a_decode_that_fits_in_one_call_traces_no_streamed_decode(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any) -> Any:
        raise AssertionError("a streamed decode was traced")

    monkeypatch.setattr(profile_trace, "_streamed_peak", refuse)
    monkeypatch.setattr(profile_trace, "_strip_peaks", refuse)
    vae = build(name)
    attachment = adaptive.enable(SimpleNamespace(vae=vae))
    latents = latents_of(vae, 3)
    folded = latents[0].transpose(0, 1) if name in ("kl", "svd") else latents
    vae.decode(folded, **({"num_frames": 3} if name == "svd" else {}))
    assert attachment.report.strategy == "batched"
    assert attachment.report.regret_seconds == 0


@pytest.mark.parametrize("name", ["wan-2.1", "wan-2.2", "qwenimage"])
@pytest.mark.parametrize("frames", [1, 2, 4, 8, 16])
def test_a_short_trace_tells_what_one_call_of_a_frame_by_frame_decoder_takes(name: str, frames: int) -> None:
    vae = shared(name)
    traced = TracedVae(type(vae), vae.config, "float32")
    exact = trace_bytes(traced, frames, frames, traced.size).device
    assert lazy_profile(traced).batched.line(frames) == pytest.approx(exact, rel=0.001)


@pytest.mark.skipif(
    published.load(".".join(PUBLISHED[0])) is None, reason="shipped profiles are of other versions"
)
@pytest.mark.parametrize(("vae_class", "digest", "dtype"), PUBLISHED)
def test_a_published_profile_is_found_by_class_configuration_and_dtype(
    vae_class: str, digest: str, dtype: str
) -> None:
    profile = published.load(published.name_of(vae_class, digest, dtype))
    assert profile is not None
    assert (profile.traits.vae_class, profile.dtype) == (vae_class, dtype)


@pytest.mark.skipif(
    published.load(".".join(PUBLISHED[0])) is None, reason="shipped profiles are of other versions"
)
def test_a_published_vae_is_planned_without_any_trace(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> Any:
        raise AssertionError("a decode was traced")

    monkeypatch.setattr(profile_trace, "_traced_bytes", refuse)
    with torch.device("meta"):
        vae = diffusers.AutoencoderKLLTXVideo()
    assert profile_of(vae, "bfloat16").estimate(SHAPE, 2).live_bytes > 0


@pytest.mark.parametrize(("policy", "strategy"), [({}, "batched"), ({"frames_per_chunk": 2}, "chunked")])
def test_an_enabled_pipeline_learns_memory_and_time_from_success(
    policy: dict[str, Any], strategy: str
) -> None:
    vae = build("ltx-0.9.0")
    latents = latents_of(vae, 7, sides=(14, 18))
    attachment = adaptive.enable(SimpleNamespace(vae=vae), **policy)
    vae.decode(latents)
    first = attachment.report.plan
    assert attachment.report.measured_peak_bytes is not None
    (seen,) = learned().residuals.to_json()[f"ltx/float32/{strategy}"]["observations"]
    assert seen[0] <= first.predicted.live_bytes
    assert 1 <= (seen[0] + seen[1]) / seen[0] < 2  # the video that the caller keeps is no part of it
    vae.decode(latents)
    second = attachment.report.plan
    assert second.predicted.upper_bytes < first.predicted.upper_bytes
    assert second.predicted_seconds is not None


def test_what_decode_learns_serves_an_enabled_pipeline() -> None:
    vae = build("ltx-0.9.0")
    latents = latents_of(vae, 7, sides=(14, 18))
    adaptive.decode(vae, latents)
    attachment = adaptive.enable(SimpleNamespace(vae=vae))
    vae.decode(latents)
    assert attachment.report.plan.predicted_seconds is not None
    assert adaptive.plan(vae, latents.shape).predicted_seconds is not None


def test_decodes_of_several_threads_may_share_what_was_learned() -> None:
    costs, profile = learned(), lazy_profile(TracedVae(diffusers.AutoencoderKLWan, {}, "float32"))
    rounds, failures = 60, []

    def decodes(number: int) -> None:
        try:
            for step in range(rounds):
                live = 10**8 + number + step
                costs.residuals.estimate("ltx", "float32", Strategy.BATCHED, live)
                costs.residuals.observe(
                    "ltx", "float32", Strategy.BATCHED, live_bytes=live, measured=MeasuredPeak(2 * live)
                )
                costs.speeds.observe(profile, LatentShape(1, 16, 1 + step % 9, 4, 4), 2, 1.0)
                costs.speeds.model(profile)
                costs.summary()
        except Exception as error:  # told by the thread that asserts
            failures.append(error)

    threads = [Thread(target=decodes, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert costs is learned()
