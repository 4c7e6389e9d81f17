"""The adaptive decoder where even one frame is too large: exact strips, then approximate tiles if allowed."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import adaptive
from adaptive.decoding.decoder import AdaptiveDecoder, DecodeEvent
from adaptive.errors import DecodeOutOfMemory, DoesNotFit, UnsupportedVae
from adaptive.memory.live_bytes import LiveBytes
from adaptive.memory.profile_trace import predict_peak, profile_of
from adaptive.planning.planner import Policy, Rung, rungs
from adaptive.stream import open_decode
from adaptive.testing import ScriptedProbe, small_ltx_vae
from adaptive.types import LatentShape, Strategy

GIB = 2**30
FREE = Policy(reserve_bytes=0)
ANY = Policy(reserve_bytes=0, exact_only=False)


def causal_vae() -> Any:
    return small_ltx_vae(decoder_causal=True)


@pytest.fixture(scope="module")
def vae() -> Any:
    return causal_vae()


@pytest.fixture(scope="module")
def latents() -> Tensor:
    return torch.randn(1, 8, 2, 16, 4, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def batched(vae: Any, latents: Tensor) -> Tensor:
    """diffusers' own decode in one call."""
    with torch.no_grad():
        frames: Tensor = vae.decode(latents, return_dict=False)[0]
    return frames


def ladder(vae: Any, latents: Tensor, strategy: Strategy) -> list[Rung]:
    found = rungs(profile_of(vae), LatentShape(*latents.shape), 0, FREE)
    return [rung for rung in found if rung.strategy is strategy]


def run(decoder: AdaptiveDecoder, latents: Tensor) -> Tensor:
    return torch.cat([frames.clone() for frames in decoder.frames(latents)], 2)


def close(frames: Tensor, expected: Tensor) -> bool:
    return frames.shape == expected.shape and torch.allclose(frames, expected, atol=1e-4, rtol=0)


def out_of_memory_where(fails: Callable[[Tensor], bool], monkeypatch: pytest.MonkeyPatch) -> Any:
    """A VAE whose last convolution runs out of memory on the inputs that a rule picks."""
    made = causal_vae()
    inner = made.decoder.conv_out.conv
    forward = inner.forward

    def conv_out(frames: Tensor) -> Tensor:
        if fails(frames):
            raise torch.OutOfMemoryError("scripted")
        result: Tensor = forward(frames)
        return result

    monkeypatch.setattr(inner, "forward", conv_out)
    return made


def test_a_budget_below_one_frame_decodes_in_strips_with_the_same_pixels(
    vae: Any, latents: Tensor, batched: Tensor
) -> None:
    events: list[DecodeEvent] = []
    budget = ladder(vae, latents, Strategy.TILED)[-1].predicted.upper_bytes
    decoder = AdaptiveDecoder(vae, probe=ScriptedProbe([budget]), policy=FREE, on_event=events.append)
    assert close(run(decoder, latents), batched)
    report = decoder.report
    assert (report.strategy, report.exact, report.seam_score) == (Strategy.TILED, True, None)
    assert report.tiles == report.plan.tiles
    assert events[0].data["tiles"]["rows"] == report.tiles.rows > 1
    with pytest.raises(DoesNotFit):
        AdaptiveDecoder(vae, probe=ScriptedProbe([budget - 1]), policy=FREE).plan(latents)


def test_strips_follow_an_out_of_memory_and_whole_pictures_return_when_memory_does(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    latents = torch.randn(1, 8, 5, 16, 4, generator=torch.Generator().manual_seed(2))
    calls: list[int] = []

    def fails(frames: Tensor) -> bool:
        calls.append(frames.shape[3])
        return len(calls) == 2  # the second chunk, of one whole frame

    vae = out_of_memory_where(fails, monkeypatch)
    per_frame = ladder(vae, latents, Strategy.PER_FRAME)[0].predicted.upper_bytes
    events: list[DecodeEvent] = []
    probe = ScriptedProbe([per_frame] * 4 + [10 * per_frame])
    decoder = AdaptiveDecoder(vae, probe=probe, policy=FREE, on_event=events.append)
    frames = run(decoder, latents)
    monkeypatch.undo()
    assert close(frames, vae.decode(latents, return_dict=False)[0].detach())
    assert decoder.report.retries == 1
    assert decoder.report.strategy is Strategy.TILED
    (fallback,) = [event.data for event in events if event.kind == "fallback"]
    assert fallback == {"from": "per_frame", "to": "tiled"}
    assert [event.data["tiles"] for event in events if event.kind == "chunk"][-1] == 1


def test_when_no_exact_way_runs_the_decode_ends_approximate_only_if_that_is_allowed(
    monkeypatch: pytest.MonkeyPatch, latents: Tensor, batched: Tensor
) -> None:
    wide = torch.cat([latents, latents], 4)
    full_width = 2 * batched.shape[4] // 4  # of the last convolution, which gives patches of four pixels
    vae = out_of_memory_where(lambda frames: frames.shape[4] == full_width, monkeypatch)
    events: list[DecodeEvent] = []
    decoder = AdaptiveDecoder(vae, probe=ScriptedProbe([GIB]), policy=ANY, on_event=events.append)
    frames = run(decoder, wide)
    report = decoder.report
    assert (report.strategy, report.exact) == (Strategy.APPROXIMATE_TILED, False)
    assert report.plan.exact
    assert report.seam_score is not None
    assert frames.shape[3:] == (512, 256)
    assert [event.data["to"] for event in events if event.kind == "fallback"][-1] == "approximate_tiled"
    with pytest.raises(DecodeOutOfMemory):
        run(AdaptiveDecoder(vae, probe=ScriptedProbe([GIB]), policy=FREE), wide)


def test_frames_that_were_given_are_not_given_again_where_approximate_ways_fail(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    latents = torch.randn(1, 8, 3, 16, 8, generator=torch.Generator().manual_seed(2))
    calls: list[bool] = []

    def fails(frames: Tensor) -> bool:
        calls.append(frames.shape[4] < 64)
        tiles = sum(calls)
        return len(calls) > 1 and (tiles > 1 if calls[-1] else not tiles)

    vae = out_of_memory_where(fails, monkeypatch)
    policy = Policy(frames_per_chunk=1, reserve_bytes=0, exact_only=False)
    decoder = AdaptiveDecoder(vae, probe=ScriptedProbe([GIB]), policy=policy)
    given: list[int] = []
    with pytest.raises(DecodeOutOfMemory):
        given.extend(frames.shape[2] for frames in decoder.frames(latents))
    assert given == [1]


def test_an_approximate_way_that_is_asked_for_is_used_and_labelled(vae: Any, latents: Tensor) -> None:
    policy = Policy(strategy="approximate_tiled", exact_only=False)
    decoder = AdaptiveDecoder(vae, probe=ScriptedProbe([GIB]), policy=policy)
    frames = run(decoder, latents)
    assert frames.shape[3:] == (512, 128)
    assert (decoder.report.strategy, decoder.report.exact) == (Strategy.APPROXIMATE_TILED, False)
    assert decoder.report.plan.reason == "requested"
    video = adaptive.decode(vae, latents, strategy="approximate_tiled", exact_only=False)
    assert torch.equal(video, frames)


def test_an_approximate_way_needs_consent_and_a_picture_large_enough(vae: Any, latents: Tensor) -> None:
    with pytest.raises(ValueError, match="exact_only=False"):
        adaptive.decode(vae, latents, strategy="approximate_tiled")
    with pytest.raises(UnsupportedVae, match="approximate_tiled"):
        adaptive.decode(vae, latents[..., :4, :4], strategy="approximate_tiled", exact_only=False)
    with pytest.raises(UnsupportedVae, match="approximate_chunked"):
        adaptive.decode(vae, latents, strategy="approximate_chunked", exact_only=False)


@pytest.mark.parametrize("strips", [2, 3, 8])
@pytest.mark.parametrize("shape", [(1, 8, 2, 8, 3), (2, 8, 2, 13, 2)])
def test_predicted_live_bytes_in_strips_are_within_two_per_cent_of_a_real_run(
    vae: Any, shape: tuple[int, ...], strips: int
) -> None:
    live = LiveBytes()
    with live.active(), open_decode(vae, torch.randn(shape)) as stream:
        while not stream.finished:
            stream.step(1, strips)
    predicted = predict_peak(vae, shape, frames_per_chunk=1, strips=strips)
    assert predicted.live_bytes == pytest.approx(live.peak_bytes, rel=0.02)
