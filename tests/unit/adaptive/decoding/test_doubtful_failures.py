"""Errors that are only possibly an out-of-memory: a few smaller attempts, then the error itself."""

import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from adaptive.decoding.decoder import AdaptiveDecoder, DecodeEvent
from adaptive.decoding.encoder import AdaptiveEncoder
from adaptive.decoding.replanning import MOST_DOUBTFUL_FAILURES
from adaptive.errors import DecodeOutOfMemory
from adaptive.memory.margins import LearnedMargins
from adaptive.planning.planner import Policy
from adaptive.stream.self_test import self_test
from adaptive.testing import ScriptedProbe, small_ltx_vae

GIB = 2**30
FREE = Policy(reserve_bytes=0)
NO_ENGINE = "GET was unable to find an engine to execute this computation"


@pytest.fixture(scope="module")
def latents() -> Tensor:
    return torch.randn(1, 8, 24, 2, 3, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def batched(latents: Tensor) -> Tensor:
    """diffusers' own decode in one call."""
    with torch.no_grad():
        frames: Tensor = small_ltx_vae().decode(latents, return_dict=False)[0]
    return frames


def failing(monkeypatch: pytest.MonkeyPatch, fails: Callable[[Tensor], Exception | None]) -> Any:
    """A VAE whose last convolution raises what a rule gives for its input."""
    vae = small_ltx_vae()
    inner = vae.decoder.conv_out.conv
    forward = inner.forward

    def conv_out(frames: Tensor) -> Tensor:
        error = fails(frames)
        if error is not None:
            raise error
        result: Tensor = forward(frames)
        return result

    monkeypatch.setattr(inner, "forward", conv_out)
    return vae


def run(decoder: AdaptiveDecoder, latents: Tensor) -> Tensor:
    return torch.cat(list(decoder.frames(latents)), 2)


@pytest.mark.parametrize("message", [NO_ENGINE, "Unable to find a valid cuDNN algorithm to run convolution"])
@pytest.mark.parametrize("most_frames", [60, 20, 12])
def test_a_decode_that_only_fails_in_large_chunks_goes_on_in_smaller_ones_and_learns_from_it(
    latents: Tensor, batched: Tensor, monkeypatch: pytest.MonkeyPatch, most_frames: int, message: str
) -> None:
    vae = failing(monkeypatch, lambda x: RuntimeError(message) if x.shape[2] > most_frames else None)
    margins = LearnedMargins("cpu")
    decoder = AdaptiveDecoder(vae, probe=ScriptedProbe([GIB]), policy=FREE, residuals=margins)
    before = margins.to_json()
    frames = run(decoder, latents)
    assert torch.allclose(frames, batched, atol=1e-4, rtol=0)
    assert decoder.report.retries >= 1
    assert margins.to_json() != before


@pytest.mark.parametrize("strategy", ["auto", "batched", "per_frame"])
def test_an_error_at_every_size_is_raised_itself_after_few_attempts_and_teaches_nothing(
    latents: Tensor, monkeypatch: pytest.MonkeyPatch, strategy: str
) -> None:
    attempts: list[int] = []

    def fails(frames: Tensor) -> Exception:
        attempts.append(frames.shape[2])
        return RuntimeError(NO_ENGINE)

    events: list[DecodeEvent] = []
    margins = LearnedMargins("cpu")
    before = margins.to_json()
    decoder = AdaptiveDecoder(
        failing(monkeypatch, fails),
        probe=ScriptedProbe([GIB]),
        policy=Policy(strategy=strategy, reserve_bytes=0),
        residuals=margins,
        on_event=events.append,
    )
    with pytest.raises(RuntimeError, match=NO_ENGINE) as raised:
        run(decoder, latents)
    assert "conv_out" in {entry.name for entry in raised.traceback}, "it says where"
    assert len(attempts) <= MOST_DOUBTFUL_FAILURES
    assert margins.to_json() == before
    if strategy == "auto":
        assert [event.data["to"] for event in events if event.kind == "replan"][-1] == 1


def test_a_certain_failure_after_a_doubtful_one_is_an_out_of_memory(
    latents: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    errors: list[Exception] = [RuntimeError(NO_ENGINE)]

    def fails(_frames: Tensor) -> Exception:
        return errors.pop() if errors else torch.OutOfMemoryError("scripted")

    decoder = AdaptiveDecoder(failing(monkeypatch, fails), probe=ScriptedProbe([GIB]), policy=FREE)
    with pytest.raises(DecodeOutOfMemory):
        run(decoder, latents)


def test_the_tensors_of_a_doubtful_failure_are_released_before_the_next_attempt(
    latents: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    failed: list[weakref.ref[Tensor]] = []
    alive: list[bool] = []

    def fails(frames: Tensor) -> Exception | None:
        if failed:
            alive.append(failed[0]() is not None)
            return None
        failed.append(weakref.ref(frames))
        return RuntimeError(NO_ENGINE)

    decoder = AdaptiveDecoder(failing(monkeypatch, fails), probe=ScriptedProbe([GIB]), policy=FREE)
    run(decoder, latents)
    assert alive[0] is False


def test_an_encode_gives_up_on_a_doubtful_error_after_few_attempts(monkeypatch: pytest.MonkeyPatch) -> None:
    vae = small_ltx_vae()
    attempts: list[int] = []

    def conv_in(frames: Tensor, *_: Any, **__: Any) -> Tensor:
        attempts.append(frames.shape[2])
        raise RuntimeError(NO_ENGINE)

    video = torch.rand(1, 3, 65, 32, 32)
    encoder = AdaptiveEncoder(vae, probe=ScriptedProbe([2**40]), policy=FREE)
    encoder.plan(tuple(video.shape))  # traced before the layer is replaced
    monkeypatch.setattr(vae.encoder.conv_in.conv, "forward", conv_in)
    with pytest.raises(RuntimeError, match=NO_ENGINE):
        encoder.encode(video)
    assert len(attempts) <= MOST_DOUBTFUL_FAILURES


@pytest.mark.parametrize("message", ["CUDA driver error: out of memory", NO_ENGINE])
def test_a_self_test_that_runs_out_of_memory_does_not_call_the_vae_unsupported(
    monkeypatch: pytest.MonkeyPatch, message: str
) -> None:
    whole: list[bool] = []

    def fails(_frames: Tensor) -> Exception | None:
        whole.append(True)
        return RuntimeError(message) if len(whole) > 1 else None  # the one call works, the stream does not

    with pytest.raises(RuntimeError, match=message):
        self_test(failing(monkeypatch, fails))
