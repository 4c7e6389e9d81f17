"""Compiled VAEs, and other layouts of memory: supported, or refused by name, never silently wrong."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from stream_property import encoded, video_of
from stream_vaes import build, latents_of, relative_error, shared, streamed

import adaptive
import adaptive.memory.profile_trace
from adaptive.errors import UnsupportedVae
from adaptive.stream import decode_whole, open_decode

NAMES = ["ltx-0.9.0", "wan-2.1", "svd", "hunyuanvideo-1.0"]


@pytest.fixture(autouse=True)
def untraced(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a decode takes does not matter here."""
    constant = adaptive.memory.profile_trace.TracedBytes(1.0, 0.0, 1.0)
    monkeypatch.setattr(adaptive.memory.profile_trace, "trace_bytes", lambda *_: constant)
    monkeypatch.setattr(adaptive.memory.profile_trace, "_strip_costs", lambda *_: (1.0, 1.0, 1.0))


@pytest.fixture
def no_compiling() -> Iterator[None]:
    """What is compiled runs as it is: only who calls what matters here."""
    torch.compiler.set_stance("force_eager")
    yield
    torch.compiler.set_stance("default")


def methods(vae: Any) -> None:
    vae.decode, vae.encode = (torch.compile(each, backend="eager") for each in (vae.decode, vae.encode))


def halves(vae: Any) -> None:
    vae.decoder, vae.encoder = (torch.compile(each, backend="eager") for each in (vae.decoder, vae.encoder))


def halves_in_place(vae: Any) -> None:
    vae.decoder.compile(backend="eager")
    vae.encoder.compile(backend="eager")


def outcome(call: Callable[[], torch.Tensor]) -> torch.Tensor | None:
    try:
        return call()
    except UnsupportedVae:
        return None


@pytest.mark.usefixtures("no_compiling")
@pytest.mark.parametrize("compile_parts", [methods, halves, halves_in_place])
@pytest.mark.parametrize("name", NAMES)
def test_a_compiled_vae_gives_the_same_or_is_refused(name: str, compile_parts: Callable[[Any], None]) -> None:
    plain = shared(name)
    latents, video = latents_of(plain, 4), video_of(name, 2)
    vae = build(name)
    compile_parts(vae)
    whole = adaptive.decode(vae, latents, frames_per_chunk=4)
    assert relative_error(whole, decode_whole(plain, latents)) <= 2e-5
    chunked = outcome(lambda: adaptive.decode(vae, latents, frames_per_chunk=2))
    assert chunked is None or relative_error(chunked, whole) <= 2e-5
    mean = adaptive.encode(vae, video)
    assert relative_error(mean, adaptive.encode(plain, video)) <= 2e-5
    parts = outcome(lambda: adaptive.encode(vae, video, frames_per_chunk=4))
    assert parts is None or relative_error(parts, mean) <= 2e-5
    if compile_parts is methods and name != "hunyuanvideo-1.0":  # which has no encoding in chunks
        assert chunked is not None
        assert parts is not None


@pytest.mark.usefixtures("no_compiling")
def test_a_vae_that_cannot_be_streamed_is_planned_in_one_call_with_the_reason() -> None:
    vae, latents = build("ltx-0.9.0"), latents_of(shared("ltx-0.9.0"), 4)
    halves_in_place(vae)
    decoder = adaptive.AdaptiveDecoder(vae)
    assert decoder.plan(latents).strategy == "batched"
    with pytest.raises(adaptive.DoesNotFit):
        adaptive.decode(vae, latents, budget_bytes=1)
    with pytest.raises(UnsupportedVae, match="LTXVideoDecoder3d does not support streaming"):
        adaptive.decode(vae, latents, frames_per_chunk=1)


@pytest.mark.parametrize("name", ["ltx-0.9.0", "kl"])
def test_a_vae_inside_torch_compile_is_refused_with_what_to_do_instead(name: str) -> None:
    vae, latents = torch.compile(build(name), backend="eager"), latents_of(shared(name), 2)
    pipe = type("Pipe", (), {"vae": vae})()
    for call in (
        lambda: adaptive.decode(vae, latents),
        lambda: adaptive.encode(vae, video_of(name, 2)),
        lambda: open_decode(vae, latents),
        lambda: adaptive.plan(vae, latents.shape),
        lambda: adaptive.enable(pipe),
    ):
        with pytest.raises(UnsupportedVae, match=r"torch\.compile: use vae\.compile\(\), or vae\._orig_mod"):
            call()


def test_a_compiled_method_is_there_again_after_detaching() -> None:
    vae = build("ltx-0.9.0")
    methods(vae)
    compiled = vae.decode, vae.encode
    adaptive.enable(type("Pipe", (), {"vae": vae})()).detach()
    assert (vae.decode, vae.encode) == compiled


@pytest.mark.parametrize("name", ["ltx-0.9.5", "wan-2.1", "svd"])
def test_channels_last_weights_and_inputs_stream_in_batches(name: str) -> None:
    formats = {5: torch.channels_last_3d, 4: torch.channels_last}
    vae = build(name)
    for parameter in vae.parameters():
        if parameter.dim() in formats:
            parameter.data = parameter.data.to(memory_format=formats[parameter.dim()])
    kwargs = {"temb": torch.tensor([0.1, 0.2])} if vae.config.get("timestep_conditioning") else {}
    latents = latents_of(vae, 4, batch=2).to(memory_format=torch.channels_last_3d)
    assert (
        relative_error(streamed(vae, latents, [1, 2], **kwargs), decode_whole(vae, latents, **kwargs)) <= 2e-5
    )
    video = video_of(name, 3, batch=2).to(memory_format=torch.channels_last_3d)
    whole = adaptive.encode(vae, video, posterior="parameters")
    assert relative_error(encoded(vae, video, [5, 3]), whole) <= 2e-5


@pytest.mark.parametrize("frames", [3, 4])
def test_cogvideox_decodes_an_even_number_of_latent_frames_too(frames: int) -> None:
    vae = shared("cogvideox")
    latents = latents_of(vae, frames)
    expected = decode_whole(vae, latents)
    assert torch.equal(adaptive.decode(vae, latents), expected)
    assert relative_error(adaptive.decode(vae, latents, frames_per_chunk=2), expected) <= 2e-5
