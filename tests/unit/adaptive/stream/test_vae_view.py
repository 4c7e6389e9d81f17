"""A view of a VAE serves one decode or encode: its engine is made once and waits for the stream."""

from __future__ import annotations

import types
from typing import Any

import pytest
import torch
from stream_vaes import build, latents_of, relative_error, run, shared
from torch import Tensor, nn

import adaptive
from adaptive.errors import UnsupportedVae
from adaptive.families import family_of
from adaptive.stream import decode_whole, open_decode, view_of
from adaptive.stream.encode_stream import EncodeStream
from adaptive.stream.vae_view import encode_view_of
from adaptive.testing import ScriptedProbe

NAMES = ["ltx-0.9.0", "wan-2.1", "cosmos", "cogvideox", "kl", "hunyuanvideo-1.0"]
GIB = 2**30


def attributes(vae: nn.Module) -> dict[str, list[tuple[str, int]]]:
    return {
        name: sorted((key, id(value)) for key, value in vars(module).items() if key != "_parameters")
        for name, module in vae.named_modules()
        if name  # diffusers keeps caches on the VAE itself
    }


def counted(vae: Any, method: str, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """VAEs of the live kind that engines are made for from now on; a trace makes some on meta."""
    made: list[Any] = []
    family = type(family_of(vae))
    original = getattr(family, method)

    def engine(self: Any, called: Any, kwargs: Any) -> Any:
        if called.device.type != "meta":
            made.append(called)
        return original(self, called, kwargs)

    monkeypatch.setattr(family, method, engine)
    return made


@pytest.mark.parametrize("name", NAMES)
def test_a_decode_makes_its_engine_once(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    vae = shared(name)
    latents = latents_of(vae, 4)
    made = counted(vae, "decode_engine", monkeypatch)
    with open_decode(vae, latents) as stream:
        for _ in run(stream, [2]):
            pass
    assert len(made) == 1
    decoder = adaptive.AdaptiveDecoder(
        vae, probe=ScriptedProbe([GIB]), policy=adaptive.Policy(frames_per_chunk=2)
    )
    assert sum(frames.shape[2] for frames in decoder.frames(latents)) >= 4
    assert decoder.report.frames_per_chunk < 4
    assert len(made) == 2


@pytest.mark.parametrize("name", ["ltx-causal", "wan-2.1"])
def test_an_encode_makes_its_engine_once(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    vae = build(name)
    made = counted(vae, "encode_engine", monkeypatch)
    adaptive.enable(types.SimpleNamespace(vae=vae))
    with torch.no_grad():
        vae.encode(torch.zeros(1, 3, 9, 32, 32))
    assert len(made) == 1


@pytest.mark.parametrize("name", NAMES)
def test_a_view_takes_no_layer_before_its_stream_is_opened(name: str) -> None:
    vae = build(name)
    before = attributes(vae)
    views = [view_of(vae)] + ([encode_view_of(vae)] if name in ("wan-2.1", "cogvideox") else [])
    assert attributes(vae) == before
    latents = latents_of(vae, 3)
    expected = decode_whole(vae, latents)
    with open_decode(views[0], latents) as first, open_decode(views[0], latents) as second:
        pieces: list[list[Tensor]] = [[], []]
        while not (first.finished and second.finished):
            for stream, parts in zip((first, second), pieces, strict=True):
                if not stream.finished:
                    parts.append(stream.step(1))
    for parts in pieces:
        assert relative_error(torch.cat(parts, 2), expected) <= 2e-5
    assert attributes(vae) == before


def test_a_layer_that_is_patched_after_the_view_is_refused_when_the_stream_opens() -> None:
    vae = build("ltx-causal")
    decode, encode = view_of(vae), encode_view_of(vae)
    for network in (vae.decoder, vae.encoder):
        layer = network.conv_in
        layer.forward = lambda *args, _forward=layer.forward, **named: _forward(*args, **named)
    with pytest.raises(UnsupportedVae, match="conv_in"):
        open_decode(decode, latents_of(vae, 3))
    with pytest.raises(UnsupportedVae, match="conv_in"):
        EncodeStream(encode, [torch.zeros(1, 3, 9, 32, 32)], 9)


def test_forced_strips_that_cannot_be_had_are_refused_when_the_decode_opens() -> None:
    vae = build("ltx-0.9.0")
    latents = latents_of(vae, 3, sides=(4, 4))
    tiled = adaptive.AdaptiveDecoder(
        vae, probe=ScriptedProbe([GIB]), policy=adaptive.Policy(strategy="tiled")
    ).plan(latents)
    entered: list[object] = []
    vae.decoder.up_blocks[-1].register_forward_hook(lambda *_: None)
    vae.decoder.conv_in.register_forward_pre_hook(lambda *_: entered.append(_))
    decoder = adaptive.AdaptiveDecoder(vae, probe=ScriptedProbe([GIB]))
    with pytest.raises(UnsupportedVae, match="strips"):
        next(decoder.frames(latents, resume_plan=tiled))
    assert not entered
