"""Encoding in the memory that is free: the most frames at a time that fit, the same latents at every size."""

from collections.abc import Callable
from functools import partialmethod
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL
from stream_vaes import build

from adaptive import AdaptiveEncoder, DoesNotFit, Policy, enable, encode
from adaptive.decoding import live_device
from adaptive.decoding.one_encode import OneEncode
from adaptive.memory.live_bytes import trace_peak
from adaptive.memory.margins import LearnedMargins
from adaptive.testing import ScriptedProbe
from adaptive.types import MeasuredPeak

SHAPE = (1, 3, 16, 32, 48)


@pytest.fixture(scope="module")
def vae() -> AutoencoderKL:
    torch.manual_seed(0)
    blocks = {"down_block_types": ["DownEncoderBlock2D"] * 2, "up_block_types": ["UpDecoderBlock2D"] * 2}
    sizes = {"block_out_channels": [8, 16], "norm_num_groups": 4, "latent_channels": 4}
    return AutoencoderKL(**blocks, **sizes).eval().requires_grad_(False)


@pytest.fixture(scope="module")
def video() -> torch.Tensor:
    return torch.rand(SHAPE, generator=torch.Generator().manual_seed(1)) * 2 - 1


def encoder(vae: AutoencoderKL, free_bytes: int, **policy: Any) -> AdaptiveEncoder:
    return AdaptiveEncoder(vae, probe=ScriptedProbe([free_bytes]), policy=Policy(reserve_bytes=0, **policy))


def needs(vae: AutoencoderKL, frames_per_chunk: int) -> int:
    """What a plan says of the chunk size, from the plan that was refused everything larger."""
    return encoder(vae, 2**40).plan(SHAPE, below=frames_per_chunk + 1).predicted_peak_bytes


@pytest.mark.parametrize("frames_per_chunk", [16, 8, 4, 1])
def test_the_most_frames_that_fit_are_encoded_at_a_time(vae: AutoencoderKL, frames_per_chunk: int) -> None:
    just_enough = needs(vae, frames_per_chunk)
    plan = encoder(vae, just_enough).plan(SHAPE)
    assert (plan.frames_per_chunk, plan.predicted_peak_bytes) == (frames_per_chunk, just_enough)
    strategy = {16: "batched", 1: "per_frame"}.get(frames_per_chunk, "chunked")
    assert plan.as_json()["strategy"] == strategy
    capped = encoder(vae, 2**40, budget_bytes=just_enough).plan(SHAPE)
    assert capped.frames_per_chunk == frames_per_chunk


def test_what_cannot_be_encoded_frame_by_frame_is_refused_with_its_bytes(vae: AutoencoderKL) -> None:
    least = needs(vae, 1)
    with pytest.raises(DoesNotFit) as caught:
        encoder(vae, least - 1).plan(SHAPE)
    assert (caught.value.needed_bytes, caught.value.budget_bytes) == (least, least - 1)


@pytest.mark.parametrize("frames_per_chunk", [16, 3, 1])
def test_prediction_is_what_a_real_encode_holds(
    vae: AutoencoderKL, video: torch.Tensor, frames_per_chunk: int
) -> None:
    chunk = None if frames_per_chunk == 16 else frames_per_chunk
    real = trace_peak(lambda: encode(vae, video, frames_per_chunk=chunk, posterior="parameters")).peak_bytes
    strategy = {16: "batched", 1: "per_frame"}.get(frames_per_chunk, "chunked")
    predicted = LearnedMargins("cpu").estimate("kl", "float32", strategy, real).upper_bytes
    assert needs(vae, frames_per_chunk) == predicted


@pytest.mark.parametrize("frames_per_chunk", [16, 5, 1])
def test_latents_are_the_same_whatever_fits(
    vae: AutoencoderKL, video: torch.Tensor, frames_per_chunk: int
) -> None:
    expected = encode(vae, video, posterior="parameters")
    found, plan = encoder(vae, needs(vae, frames_per_chunk)).encode(video, posterior="parameters")
    assert plan.frames_per_chunk == {5: 4}.get(frames_per_chunk, frames_per_chunk)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


def test_running_out_of_memory_leads_to_smaller_chunks(
    vae: AutoencoderKL, video: torch.Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[int] = []
    original = vae.encode

    def scarce(frames: torch.Tensor, **named: Any) -> Any:
        sizes.append(len(frames))
        if len(frames) > 4:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return original(frames, **named)

    expected = encode(vae, video)
    monkeypatch.setattr(vae, "encode", scarce)
    found, plan = encoder(vae, 2**40).encode(video)
    assert sizes == [16, 8, 6, 4, 4, 4, 4]
    assert plan.frames_per_chunk == 4
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
    monkeypatch.setattr(vae, "encode", lambda *_, **__: scarce(torch.zeros(5)))
    with pytest.raises(torch.OutOfMemoryError):
        encoder(vae, 2**40).encode(video)


def fed_to(network: Any, monkeypatch: pytest.MonkeyPatch, fails: Callable[[int, int], bool]) -> list[int]:
    """Numbers of frames that a network computes from now on.

    It is out of memory where a rule says so of the frames of this call and of all calls before.
    """
    fed: list[int] = []
    original = type(network).forward

    def forward(self: Any, frames: torch.Tensor, *rest: Any, **named: Any) -> Any:
        if frames.is_meta:  # traced, not computed
            return original(self, frames, *rest, **named)
        if fails(frames.shape[2], sum(fed)):
            raise torch.OutOfMemoryError("CUDA out of memory")
        fed.append(frames.shape[2])
        return original(self, frames, *rest, **named)

    monkeypatch.setattr(type(network), "forward", forward)
    return fed


@pytest.mark.parametrize("name", ["ltx-causal", "magvit", "wan-2.1"])
def test_an_encode_that_runs_out_of_memory_half_way_goes_on_from_there(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    live = build(name)
    clip = torch.rand(1, 3, 33, 32, 32, generator=torch.Generator().manual_seed(1)) * 2 - 1
    expected = encode(live, clip)
    adaptive = AdaptiveEncoder(live, probe=ScriptedProbe([2**40]), policy=Policy(reserve_bytes=0))
    monkeypatch.setattr(OneEncode, "plan", partialmethod(OneEncode.plan, below=33))
    with monkeypatch.context() as undisturbed:
        plain = fed_to(live.encoder, undisturbed, lambda _frames, _before: False)
        _, planned = adaptive.encode(clip)
    last = plain[-1]
    fed = fed_to(live.encoder, monkeypatch, lambda frames, before: frames >= last and before >= 33 - last)
    found, plan = adaptive.encode(clip)
    assert sum(fed) == sum(plain) == 33
    assert plan.frames_per_chunk < planned.frames_per_chunk
    assert fed[: len(plain) - 1] == plain[:-1], "no chunk is computed twice"
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)


def parts(video: torch.Tensor) -> Any:
    return iter(video.split(3, 2))


@pytest.mark.parametrize("size", [8, 4, 2, 1])
def test_a_stream_takes_the_most_frames_that_fit(
    vae: AutoencoderKL, video: torch.Tensor, size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    enough = encoder(vae, 2**40).plan_stream(SHAPE, frames_per_chunk=size).predicted_peak_bytes
    sizes = noted(vae, monkeypatch)
    found = torch.cat(list(encoder(vae, enough).stream(parts(video), SHAPE)), 2)
    assert sizes == [size] * (16 // size)
    torch.testing.assert_close(found, encode(vae, video), atol=1e-5, rtol=0)
    with pytest.raises(DoesNotFit):
        encoder(vae, enough - 1).plan_stream(SHAPE, frames_per_chunk=size)


def test_a_stream_follows_the_memory_that_is_free(
    vae: AutoencoderKL, video: torch.Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    needed = {
        n: encoder(vae, 2**40).plan_stream(SHAPE, frames_per_chunk=n).predicted_peak_bytes for n in (1, 4)
    }
    sizes = noted(vae, monkeypatch)
    probe = ScriptedProbe([2**40, needed[4], needed[1], 0, 2**40])
    adaptive = AdaptiveEncoder(vae, probe=probe, policy=Policy(reserve_bytes=0))
    found = torch.cat(list(adaptive.stream(parts(video), SHAPE)), 2)
    assert sizes == [8, 4, 1, 1, 2]
    torch.testing.assert_close(found, encode(vae, video), atol=1e-5, rtol=0)


def test_a_stream_that_runs_out_of_memory_tries_the_chunk_again_in_smaller_ones(
    vae: AutoencoderKL, video: torch.Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = noted(vae, monkeypatch, most=3)
    found = torch.cat(list(encoder(vae, 2**40).stream(parts(video), SHAPE)), 2)
    assert sizes == [8, 4, *[2] * 8]
    monkeypatch.undo()
    torch.testing.assert_close(found, encode(vae, video), atol=1e-5, rtol=0)
    noted(vae, monkeypatch, most=0)
    with pytest.raises(torch.OutOfMemoryError):
        list(encoder(vae, 2**40).stream(parts(video), SHAPE))


def noted(vae: AutoencoderKL, monkeypatch: pytest.MonkeyPatch, most: int = 99) -> list[int]:
    """Numbers of frames that `vae.encode` is called with from now on; beyond `most` it is out of memory."""
    sizes: list[int] = []
    original = vae.encode

    def scarce(frames: torch.Tensor, **named: Any) -> Any:
        sizes.append(len(frames))
        if len(frames) > most:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return original(frames, **named)

    monkeypatch.setattr(vae, "encode", scarce)
    return sizes


class MeasuringProbe(ScriptedProbe):
    """A probe that has measured so many bytes, in every encode."""

    def __init__(self, peak_bytes: int) -> None:
        super().__init__([2**40])
        self._peak_bytes = peak_bytes

    def peak(self, held_bytes: int = 0) -> MeasuredPeak | None:  # noqa: ARG002 - the protocol's signature
        return MeasuredPeak(self._peak_bytes)


@pytest.mark.parametrize("frames_per_chunk", [16, 4])
def test_an_encode_teaches_the_next_one_what_it_took(
    vae: AutoencoderKL,
    video: torch.Tensor,
    frames_per_chunk: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(OneEncode, "plan", partialmethod(OneEncode.plan, below=frames_per_chunk + 1))
    adaptive = AdaptiveEncoder(vae, probe=MeasuringProbe(10**5), policy=Policy(reserve_bytes=0))
    _, first = adaptive.encode(video)
    _, second = adaptive.encode(video)
    assert second.frames_per_chunk == first.frames_per_chunk == frames_per_chunk
    assert second.predicted_peak_bytes < first.predicted_peak_bytes


def test_a_stream_teaches_the_next_one_what_it_took(vae: AutoencoderKL, video: torch.Tensor) -> None:
    adaptive = AdaptiveEncoder(vae, probe=MeasuringProbe(10**5), policy=Policy(reserve_bytes=0))
    before = adaptive.plan_stream(SHAPE)
    assert sum(latents.shape[2] for latents in adaptive.stream(parts(video), SHAPE)) == 16
    assert adaptive.plan_stream(SHAPE).predicted_peak_bytes < before.predicted_peak_bytes


def test_an_encode_that_ran_out_of_memory_teaches_that_it_needs_more(
    vae: AutoencoderKL, video: torch.Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    margins = LearnedMargins("cpu")
    probe = ScriptedProbe([2**40])
    adaptive = AdaptiveEncoder(vae, probe=probe, policy=Policy(reserve_bytes=0), residuals=margins)
    before = adaptive.plan(SHAPE)
    noted(vae, monkeypatch, most=8)
    _, after = adaptive.encode(video)
    assert after.frames_per_chunk == 8
    assert adaptive.plan(SHAPE).predicted_peak_bytes > before.predicted_peak_bytes
    assert set(margins.to_json()) == {"kl encoder/float32/batched"}


def test_an_enabled_pipeline_learns_from_the_clips_that_it_encodes(monkeypatch: pytest.MonkeyPatch) -> None:
    live = build("ltx-causal")
    clip = torch.rand(1, 3, 17, 32, 32, generator=torch.Generator().manual_seed(1)) * 2 - 1
    monkeypatch.setattr(live_device, "open_probe", lambda _device, **_options: MeasuringProbe(10**5))
    attachment = enable(SimpleNamespace(vae=live))
    plans = []
    with torch.no_grad():
        for _ in range(2):
            live.encode(clip)
            assert attachment.encode_plan is not None
            plans.append(attachment.encode_plan.predicted_peak_bytes)
    assert plans[1] < plans[0]
