"""State of a stream: whose it is, what it weighs, and what a failure leaves of it."""

from __future__ import annotations

import gc
from itertools import cycle
from typing import Any

import diffusers
import pytest
import torch
from stream_vaes import (
    CONFIGS,
    LOOKS_BACK,
    LTX,
    build,
    kwargs_of,
    latents_of,
    relative_error,
    run,
    shared,
    streamed,
)
from torch import Tensor, nn

from adaptive.memory.live_bytes import LiveBytes
from adaptive.stream import DecodeStream, decode_whole, open_decode
from adaptive.stream.encode_stream import EncodeStream

STAGED = [
    name
    for name in CONFIGS
    if name.startswith(("ltx", "wan", "qwen", "mochi", "magvit", "cosmos", "hunyuanvideo-1.5"))
]


class Flaky:
    """A forward pre-hook that fails at its nth call from now."""

    def __init__(self, vae: nn.Module) -> None:
        self.calls_left = -1
        for module in vae.modules():
            if isinstance(module, nn.Conv3d | nn.SiLU):
                module.register_forward_pre_hook(self)

    def __call__(self, *_: Any) -> None:
        self.calls_left -= 1
        if self.calls_left == 0:
            raise torch.OutOfMemoryError("injected")


@pytest.mark.parametrize("name", STAGED)
def test_a_step_that_fails_anywhere_loses_nothing_and_smaller_steps_go_on(name: str) -> None:
    vae = build(name)
    latents, kwargs = latents_of(vae, 7), kwargs_of(vae)
    torch.manual_seed(0)
    expected = decode_whole(vae, latents, **kwargs)
    flaky = Flaky(vae)
    torch.manual_seed(0)
    failures, pieces = 0, []
    with open_decode(vae, latents, **kwargs) as stream:
        while not stream.finished:
            flaky.calls_left = 3 + 5 * failures
            try:
                pieces.append(stream.step(3))
            except torch.OutOfMemoryError:
                failures += 1
                flaky.calls_left = -1
                pieces.append(stream.step(1))
    assert failures >= 3
    assert relative_error(torch.cat(pieces, 2), expected) <= 2e-5


@pytest.mark.parametrize("name", STAGED)
def test_what_failed_twice_is_taken_frame_by_frame_and_may_fail_again(name: str) -> None:
    vae = build(name)
    latents, kwargs = latents_of(vae, 6), kwargs_of(vae)
    torch.manual_seed(0)
    expected = decode_whole(vae, latents, **kwargs)
    flaky = Flaky(vae)
    torch.manual_seed(0)
    depths, failures, pieces = cycle((9, 4, 2, 30, 11, 1, 23, 3)), 0, []
    with open_decode(vae, latents, **kwargs) as stream:
        while not stream.finished:
            flaky.calls_left = next(depths) if failures < 10 else -1
            try:
                pieces.append(stream.step(4))
            except torch.OutOfMemoryError:
                failures += 1
    assert failures == 10
    assert relative_error(torch.cat(pieces, 2), expected) <= 2e-5


def test_noise_is_drawn_for_whole_steps_so_one_that_fails_leaves_the_stream_as_it_was() -> None:
    vae = build("ltx-noise")
    flaky = Flaky(vae)
    with open_decode(vae, latents_of(vae, 7), **kwargs_of(vae)) as stream:
        stream.step(1)
        before = (stream.position, stream.video_frames_done, stream.state_bytes)
        for depth in (3, 6, 9):
            flaky.calls_left = depth
            with pytest.raises(torch.OutOfMemoryError):
                stream.step(3)
            assert (stream.position, stream.video_frames_done, stream.state_bytes) == before


def test_a_failed_step_leaves_no_bytes_behind_but_the_frames_that_wait() -> None:
    vae = build("ltx-causal")
    flaky = Flaky(vae)
    live, latents = LiveBytes(), latents_of(vae, 4)
    gc.disable()
    try:
        with live.active(), open_decode(vae, latents) as stream:
            stream.step(1)
            for depth in (4, 12, 20):
                flaky.calls_left = depth
                with pytest.raises(torch.OutOfMemoryError):
                    stream.step(2)
                held = {tensor.untyped_storage()._cdata: tensor for tensor in _tensors(stream)}
                assert live.live_bytes == sum(each.untyped_storage().nbytes() for each in held.values())
                assert 0 < stream.waiting_bytes < stream.state_bytes
            flaky.calls_left = -1
            steps = sum(1 for _ in iter(lambda: stream.step(2) if stream.waiting_bytes else None, None))
            assert 0 < steps < 8
    finally:
        gc.enable()


def test_a_step_holds_no_second_copy_of_the_state() -> None:
    with torch.device("meta"):
        vae = diffusers.AutoencoderKLLTXVideo().eval()
    latents, live = torch.empty(1, 128, 30, 2, 3, device="meta"), LiveBytes()
    with live.active(), open_decode(vae, latents) as stream:
        while stream.position < 26:
            stream.step(1)
        state = stream.state_bytes
        live.reset_peak()
        stream.step(1)
    assert live.peak_bytes < 2 * state  # the largest layer's tensors beside the state weigh nine tenths of it


def test_streams_take_turns_on_one_vae_and_a_whole_decode_comes_between() -> None:
    vae = shared("ltx-0.9.0")
    sources = [latents_of(vae, frames, seed=frames) for frames in (3, 5, 4)]
    expected = [decode_whole(vae, latents) for latents in sources]
    streams = [open_decode(vae, latents) for latents in sources]
    pieces: list[list[Tensor]] = [[] for _ in streams]
    turn = 0
    while not all(stream.finished for stream in streams):
        for stream, got in zip(streams, pieces, strict=True):
            if not stream.finished:
                got.append(stream.step(1 + turn % 2))
        assert torch.equal(decode_whole(vae, sources[0]), expected[0])
        turn += 1
    for got, whole in zip(pieces, expected, strict=True):
        assert relative_error(torch.cat(got, 2), whole) <= 2e-5


@pytest.mark.parametrize("name", [name for name in CONFIGS if name not in LOOKS_BACK])
def test_state_does_not_grow_with_the_length_of_the_video(name: str) -> None:
    vae = shared(name)

    def largest(frames: int) -> int:
        with open_decode(vae, latents_of(vae, frames), **kwargs_of(vae)) as stream:
            return max(stream.state_bytes for _ in run(stream, [2]))

    assert largest(26) == largest(52)


@pytest.mark.parametrize("name", CONFIGS)
def test_neither_state_nor_frames_keep_larger_storages_alive(name: str) -> None:
    vae = shared(name)
    with open_decode(vae, latents_of(vae, 9), **kwargs_of(vae)) as stream:
        for frames in run(stream, [3, 1]):
            assert frames.untyped_storage().nbytes() == frames.nbytes
            for tensor in _tensors(stream):
                assert tensor.untyped_storage().nbytes() == tensor.nbytes


@pytest.mark.parametrize("name", LTX)
def test_a_step_leaves_nothing_to_the_garbage_collector(name: str) -> None:
    vae = shared(name)
    with open_decode(vae, latents_of(vae, 4), **kwargs_of(vae)) as stream:
        stream.step(2)
        gc.collect()
        gc.disable()
        try:
            stream.step(1)
            stray = [thing for thing in _found_by_collection() if isinstance(thing, Tensor)]
        finally:
            gc.enable()
    assert stray == []


def test_a_parked_stream_continues_where_it_stopped() -> None:
    vae = shared("ltx-0.9.0")
    latents = latents_of(vae, 6)
    with open_decode(vae, latents) as stream:
        pieces = [stream.step(2)]
        weight = stream.state_bytes
        stream.park("meta")  # a device that keeps no values, to see that parking moves everything
        assert {tensor.device.type for tensor in _tensors(stream)} == {"meta"}
        assert stream.state_bytes == weight
    with open_decode(vae, latents) as stream:
        pieces = []
        for frames in run(stream, [2]):
            pieces.append(frames)
            stream.park("cpu")
            stream.resume()
    assert relative_error(torch.cat(pieces, 2), decode_whole(vae, latents)) <= 2e-5


@pytest.mark.parametrize("name", CONFIGS)
def test_meta_tensors_stream_with_the_shapes_of_real_ones(name: str) -> None:
    real, latents, kwargs = build(name), latents_of(shared(name), 5), kwargs_of(shared(name))
    with open_decode(real, latents, **kwargs) as stream:
        expected = [frames.shape for frames in run(stream, [2, 1])]
    meta = real.to("meta")
    with open_decode(meta, latents.to("meta"), **{k: v.to("meta") for k, v in kwargs.items()}) as stream:
        frames = list(run(stream, [2, 1]))
    assert [tensor.shape for tensor in frames] == expected
    assert {tensor.device.type for tensor in frames} == {"meta"}


def test_gradients_are_neither_needed_nor_kept() -> None:
    vae = shared("ltx-0.9.0")
    latents = latents_of(vae, 2).requires_grad_()
    assert not streamed(vae, latents, [1]).requires_grad


@pytest.mark.parametrize("name", CONFIGS)
def test_a_finished_stream_gives_no_more_frames(name: str) -> None:
    vae = shared(name)
    with open_decode(vae, latents_of(vae, 2), **kwargs_of(vae)) as stream:
        last = list(run(stream, [2]))[-1]
        extra = stream.step(1)
    assert extra.shape[2] == 0
    assert extra.shape[3:] == last.shape[3:]


def test_a_closed_stream_refuses_to_go_on() -> None:
    vae = shared("ltx-0.9.0")
    with open_decode(vae, latents_of(vae, 2)) as stream:
        stream.step(1)
    with pytest.raises(RuntimeError, match="closed"):
        stream.step(1)
    stream.close()


@pytest.mark.parametrize("size", [0, -1])
def test_a_step_of_no_frames_is_refused(size: int) -> None:
    vae = shared("ltx-0.9.0")
    with open_decode(vae, latents_of(vae, 2)) as stream, pytest.raises(ValueError, match=str(size)):
        stream.step(size)


def _tensors(stream: DecodeStream) -> list[Tensor]:
    found: list[Tensor] = []
    pending: list[Any] = list(stream._state.values())
    while pending:
        value = pending.pop()
        if isinstance(value, Tensor):
            found.append(value)
        elif isinstance(value, tuple | list):
            pending.extend(value)
        elif isinstance(value, dict):
            pending.extend(value.values())
    return found


def _found_by_collection() -> list[Any]:
    gc.set_debug(gc.DEBUG_SAVEALL)
    try:
        gc.collect()
        return list(gc.garbage)
    finally:
        gc.set_debug(0)
        gc.garbage.clear()


class Silent:
    """An engine that takes frames and never gives any: a fault of an engine."""

    def __init__(self, engine: Any) -> None:
        self.take = engine.take
        self.close = engine.close

    def advance(self, state: Any, _chunk: Tensor, **_: Any) -> tuple[None, Any]:
        return None, dict(state)


def test_a_stream_that_gives_nothing_any_more_is_an_error_and_not_an_endless_decode() -> None:
    vae = shared("ltx-0.9.0")
    with open_decode(vae, latents_of(vae, 6)) as stream:
        stream.step(2)
        stream._engine = Silent(stream._engine)  # type: ignore[assignment]
        stream.step(4)
        with pytest.raises(AssertionError, match="without progress"):
            [stream.step(1) for _ in range(4)]


def test_an_encode_that_gives_nothing_any_more_is_an_error_and_not_endless() -> None:
    vae = shared("wan-2.1")
    stream = EncodeStream(vae, [torch.zeros(1, 3, 9, 16, 16)], 9)
    stream._engine = Silent(stream._engine)  # type: ignore[assignment]
    with pytest.raises(AssertionError, match="latent frames"):
        [stream.step(4) for _ in range(7)]


def test_the_state_grows_with_the_video_only_where_the_decoder_looks_back() -> None:
    grown = {}
    for name in ("cosmos", "hunyuanvideo-1.5", "wan-2.1", "magvit"):
        vae = shared(name)
        with open_decode(vae, latents_of(vae, 12)) as stream:
            held = []
            for _ in range(10):
                stream.step(1)
                held.append(stream.state_bytes)
        grown[name] = held[-1] > held[3]
    assert grown == {name: name in LOOKS_BACK for name in grown}
