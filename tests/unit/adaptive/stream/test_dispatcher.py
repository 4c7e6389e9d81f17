"""Rules run in the thread that streams, for the length of a step; all else sees the VAE's own layers."""

from __future__ import annotations

import contextvars
import copy
import gc
import inspect
import pickle
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import Barrier, Event, Thread, current_thread
from typing import Any

import pytest
import torch
from accelerate import cpu_offload
from accelerate.hooks import ModelHook, add_hook_to_module, remove_hook_from_module
from diffusers.hooks import apply_group_offloading, apply_layerwise_casting
from stream_property import encoded, video_of
from stream_vaes import build, kwargs_of, latents_of, relative_error, run, streamed
from torch import Tensor, nn

import adaptive
from adaptive.stream import DecodeStream, decode_whole, open_decode
from adaptive.stream.encode_stream import EncodeStream
from adaptive.stream.intercept import Dispatcher, Interception, running

NAMES = ["ltx-0.9.0", "ltx2", "wan-2.1", "cosmos", "magvit", "hunyuanvideo-1.5", "mochi", "qwenimage"]
FIVE = ["ltx-0.9.0", "ltx2", "wan-2.1", "cosmos", "magvit"]
SECONDS = 60  # a bound for a hang, never waited for


def attributes(vae: nn.Module) -> dict[str, list[tuple[str, int]]]:
    """Everything that hangs on the modules, by identity."""
    return {
        name: sorted((key, id(value)) for key, value in vars(module).items() if key != "_parameters")
        for name, module in vae.named_modules()
    }


def dispatched(vae: nn.Module) -> set[str]:
    return {name for name, module in vae.named_modules() if _holds_dispatcher(module)}


def _holds_dispatcher(module: nn.Module) -> bool:
    places = [*vars(module).values()]
    for reference in getattr(vars(module).get("_diffusers_hook"), "_fn_refs", ()):
        places += vars(reference).values()
    return any(isinstance(place, Dispatcher) for place in places)


@contextmanager
def in_thread(work: Callable[[], None]) -> Iterator[Thread]:
    """Run `work` meanwhile; its error is raised at the end."""
    errors: list[BaseException] = []

    def caught() -> None:
        try:
            work()
        except BaseException as error:
            errors.append(error)

    thread = Thread(target=caught, daemon=True)
    yield thread
    thread.join(SECONDS)
    assert not thread.is_alive()
    if errors:
        raise errors[0]


@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_a_plain_decode_in_the_middle_of_another_thread_s_step_gives_its_own_frames(name: str) -> None:
    vae = build(name)
    latents = latents_of(vae, 4)
    expected = vae.decode(latents).sample
    inside, decoded = Event(), Event()
    videos: list[Tensor] = []

    def pause(*_: object) -> None:
        if current_thread() is thread and not decoded.is_set():
            inside.set()
            assert decoded.wait(SECONDS)

    blocks = [*vae.decoder.modules()]
    blocks[len(blocks) // 2].register_forward_hook(pause)
    with in_thread(lambda: videos.append(streamed(vae, latents, [2]))) as thread:
        thread.start()
        assert inside.wait(SECONDS)
        try:
            plain = vae.decode(latents).sample
        finally:
            decoded.set()
    assert torch.equal(plain, expected)
    assert relative_error(videos[0], expected) <= 2e-5


@pytest.mark.parametrize("name", FIVE)
def test_two_threads_that_run_freely_on_one_vae_get_no_wrong_frame(name: str) -> None:
    vae = build(name)
    latents = latents_of(vae, 3)
    with torch.no_grad():
        expected = vae.decode(latents).sample
    start = Barrier(2)

    def stream() -> None:
        start.wait(SECONDS)
        for _ in range(12):
            assert relative_error(streamed(vae, latents, [1]), expected) <= 2e-5

    with in_thread(stream) as thread, torch.no_grad():
        thread.start()
        start.wait(SECONDS)
        for _ in range(12):
            assert torch.equal(vae.decode(latents).sample, expected)
    assert not dispatched(vae)


def test_two_threads_that_stream_one_vae_do_not_meet() -> None:
    vae = build("ltx-0.9.0")
    latents = [latents_of(vae, 4, seed=seed) for seed in range(2)]
    expected = [decode_whole(vae, each) for each in latents]
    start = Barrier(2)

    def stream(number: int) -> None:
        start.wait(SECONDS)
        for _ in range(8):
            video = streamed(vae, latents[number], [1 + number])
            assert relative_error(video, expected[number]) <= 2e-5

    with in_thread(lambda: stream(0)) as thread:
        thread.start()
        stream(1)
    assert not dispatched(vae)


@pytest.mark.parametrize("name", NAMES)
def test_dispatchers_are_installed_once_and_the_last_stream_removes_them(name: str) -> None:
    vae = build(name)
    before = attributes(vae)
    first = open_decode(vae, latents_of(vae, 3))
    installed = attributes(vae)
    assert dispatched(vae)
    first.step(1)
    second = open_decode(vae, latents_of(vae, 3))
    first.step(1)
    second.step(1)
    assert attributes(vae) == installed
    second.close()
    second.close()
    assert attributes(vae) == installed
    for _ in run(first, [1]):
        pass
    assert first.finished
    assert attributes(vae) == before


def _closed(vae: Any) -> None:
    stream = open_decode(vae, latents_of(vae, 3))
    stream.step(1)
    stream.close()


def _dropped(vae: Any) -> None:
    open_decode(vae, latents_of(vae, 3)).step(1)
    gc.collect()


def _dropped_in_a_circle(vae: Any) -> None:
    circle: list[Any] = [open_decode(vae, latents_of(vae, 3))]
    circle.append(circle)
    del circle
    gc.collect()


def _decoded(vae: Any) -> None:
    adaptive.decode(vae, latents_of(vae, 3), frames_per_chunk=1)


def _begun(vae: Any) -> None:
    next(adaptive.stream_decode(vae, latents_of(vae, 3), frames_per_chunk=1))


def _planned(vae: Any) -> None:
    adaptive.AdaptiveDecoder(vae).plan(latents_of(vae, 3))


def _encoded(vae: Any) -> None:
    encoded(vae, video_of("ltx-0.9.0", 2), [4])


def _half_encoded(vae: Any) -> None:
    stream = EncodeStream(vae, [video_of("ltx-0.9.0", 2)])
    stream.step(1)
    stream.close()


@pytest.mark.parametrize(
    "use",
    [_closed, _dropped, _dropped_in_a_circle, _decoded, _begun, _planned, _encoded, _half_encoded],
)
def test_nothing_is_left_behind(use: Callable[[Any], None]) -> None:
    vae = build("ltx-0.9.0")
    before = attributes(vae)
    use(vae)
    assert attributes(vae) == before


@pytest.mark.parametrize("clone", [copy.deepcopy, lambda vae: pickle.loads(pickle.dumps(vae))])
@pytest.mark.parametrize("name", ["ltx-0.9.0", "wan-2.1", "cosmos"])
@torch.no_grad()
def test_a_vae_copied_while_it_streams_uses_its_own_weights(name: str, clone: Callable[[Any], Any]) -> None:
    vae = build(name)
    latents = latents_of(vae, 3)
    expected = vae.decode(latents).sample
    with open_decode(vae, latents) as stream:
        stream.step(1)
        copied = clone(vae)
    for parameter in vae.parameters():
        parameter.zero_()
    assert torch.equal(copied.decode(latents).sample, expected)
    assert not dispatched(copied)
    assert relative_error(streamed(copied, latents, [1]), expected) <= 2e-5
    again = clone(copied)
    for parameter in copied.parameters():
        parameter.zero_()
    assert torch.equal(again.decode(latents).sample, expected)


@torch.no_grad()
def test_an_offloaded_vae_copied_while_it_streams_uses_its_own_layers() -> None:
    vae = build("ltx-0.9.0")
    latents = latents_of(vae, 3)
    expected = decode_whole(vae, latents)
    for layer in vae.decoder.modules():
        add_hook_to_module(layer, ModelHook())
    with open_decode(vae, latents):
        copied = copy.deepcopy(vae)
    for parameter in vae.parameters():
        parameter.zero_()
    assert torch.equal(decode_whole(copied, latents), expected)
    assert relative_error(streamed(copied, latents, [1]), expected) <= 2e-5


@pytest.mark.parametrize("name", ["ltx-causal", "ltx2"])
@torch.no_grad()
def test_what_is_compiled_while_a_stream_is_open_gets_the_layers_own_forward(name: str) -> None:
    vae = build(name)
    latents = latents_of(vae, 2)
    expected = vae.decoder(latents)
    with open_decode(vae, latents) as stream:
        stream.step(1)
        compiled = torch.compile(vae.decoder, backend="eager", fullgraph=True)
        assert torch.equal(compiled(latents), expected)
    assert torch.equal(compiled(latents), expected)
    torch.compiler.reset()


@pytest.mark.parametrize("name", ["ltx-causal", "wan-2.1"])
@torch.no_grad()
def test_a_caller_that_is_compiled_streams_the_same_frames(name: str) -> None:
    vae = build(name)
    latents = latents_of(vae, 3)
    expected = decode_whole(vae, latents)
    with open_decode(vae, latents) as stream:
        step = torch.compile(lambda frames: stream.step(frames), backend="eager")
        pieces = []
        while not stream.finished:
            pieces.append(step(1))
    assert relative_error(torch.cat(pieces, 2), expected) <= 2e-5
    torch.compiler.reset()


def test_the_signature_of_a_dispatched_layer_is_its_own() -> None:
    vae = build("ltx-0.9.0")
    layer = vae.decoder.mid_block.resnets[0]
    expected = inspect.signature(layer.forward)
    with open_decode(vae, latents_of(vae, 2)):
        assert isinstance(layer.forward, Dispatcher)
        assert inspect.signature(layer.forward) == expected


def test_a_context_that_is_copied_in_a_step_has_no_rules_after_it() -> None:
    vae = build("ltx-0.9.0")
    latents = latents_of(vae, 3)
    expected = decode_whole(vae, latents)
    copies: list[contextvars.Context] = []
    vae.decoder.mid_block.register_forward_hook(lambda *_: copies.append(contextvars.copy_context()))
    with open_decode(vae, latents) as stream:
        stream.step(1)
        assert torch.equal(copies[0].run(decode_whole, vae, latents), expected)


def test_a_stream_inside_another_one_s_step_runs_its_own_rules() -> None:
    vae, inner = build("ltx-0.9.0"), build("ltx-causal")
    latents = latents_of(vae, 3)
    expected, inner_expected = decode_whole(vae, latents), decode_whole(inner, latents)
    videos: list[Tensor] = []
    vae.decoder.mid_block.register_forward_hook(lambda *_: videos.append(streamed(inner, latents, [1])))
    assert relative_error(streamed(vae, latents, [1]), expected) <= 2e-5
    assert all(relative_error(video, inner_expected) <= 2e-5 for video in videos)


def _accelerate(vae: Any) -> Callable[[], None]:
    for layer in vae.decoder.modules():
        add_hook_to_module(layer, ModelHook())
    return lambda: remove_hook_from_module(vae, recurse=True)


def _sequential(vae: Any) -> Callable[[], None]:
    cpu_offload(vae, execution_device="cpu")
    return lambda: remove_hook_from_module(vae, recurse=True)


def _groups(vae: Any) -> Callable[[], None]:
    cpu = torch.device("cpu")
    apply_group_offloading(vae, onload_device=cpu, offload_device=cpu, offload_type="leaf_level")
    return lambda: None


def _casting(vae: Any) -> Callable[[], None]:
    apply_layerwise_casting(vae.decoder, storage_dtype=torch.float32, compute_dtype=torch.float32)
    return lambda: None


OFFLOADS = [_accelerate, _sequential, _groups, _casting]


def _rest(stream: DecodeStream) -> list[Tensor]:
    return list(run(stream, [1]))


@pytest.mark.parametrize("offload", OFFLOADS)
@pytest.mark.parametrize("name", ["ltx-0.9.1", "wan-2.1"])
@torch.no_grad()
def test_hooks_may_come_and_go_while_a_stream_is_open(name: str, offload: Callable[[Any], Any]) -> None:
    vae = build(name)
    latents, kwargs = latents_of(vae, 5), kwargs_of(vae)
    expected = decode_whole(vae, latents, **kwargs)
    with open_decode(vae, latents, **kwargs) as stream:
        pieces = [stream.step(1)]
        remove = offload(vae)
        pieces.append(stream.step(1))
        hooked = {layer: vars(layer)["forward"] for layer in vae.modules() if _is_hooked(layer)}
        assert hooked
        whole = vae.decode(latents, **kwargs).sample
        pieces += _rest(stream)
    assert relative_error(torch.cat(pieces, 2), expected) <= 2e-5
    assert relative_error(whole, expected) <= 2e-5
    assert {layer: vars(layer)["forward"] for layer in hooked} == hooked
    assert not dispatched(vae)
    with open_decode(vae, latents, **kwargs) as stream:
        pieces = [stream.step(1)]
        remove()
        pieces += _rest(stream)
    assert relative_error(torch.cat(pieces, 2), expected) <= 2e-5
    assert not dispatched(vae)
    assert relative_error(decode_whole(vae, latents, **kwargs), expected) <= 2e-5


def _is_hooked(layer: nn.Module) -> bool:
    return bool({"_hf_hook", "_diffusers_hook"} & vars(layer).keys()) and "forward" in vars(layer)


def test_a_layer_patched_while_a_stream_is_open_keeps_its_patch() -> None:
    vae = build("ltx-0.9.0")
    layer = vae.decoder.mid_block.resnets[0].conv1
    with open_decode(vae, latents_of(vae, 3)) as stream:
        original = layer.forward

        def patched(*args: Any, **kwargs: Any) -> Any:
            return original(*args, **kwargs)

        layer.forward = patched
        stream.step(1)
    assert layer.forward is patched
    with pytest.raises(
        adaptive.UnsupportedVae, match=r"mid_block\.resnets\.0\.conv1 \(LTXVideoCausalConv3d\)"
    ):
        open_decode(vae, latents_of(vae, 3))
    layer.forward = original
    assert streamed(vae, latents_of(vae, 3), [1]).shape[2] == 17
    assert not dispatched(vae)


def test_a_finalizer_that_runs_while_dispatchers_are_installed_does_not_deadlock() -> None:
    first, second = nn.Linear(1, 1), nn.Linear(1, 1)
    old = [Interception(first, [first])]

    def layers() -> Iterator[nn.Module]:
        yield second
        old.clear()
        yield first

    with torch.no_grad():
        interception = Interception(nn.ModuleList([first, second]), layers())
        with running({first: lambda _module, forward, x: forward(x) * 0}):
            assert first(torch.ones(1)) == 0
        interception.close()
    assert not dispatched(nn.ModuleList([first, second]))
