"""Modes of torch around a stream: autocast, and inference mode that begins or ends between two steps."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from itertools import cycle
from typing import Any

import pytest
import torch
from stream_vaes import CONFIGS, kwargs_of, latents_of, relative_error, run, shared
from torch import Tensor

from adaptive.families import family_of
from adaptive.stream import BlendedTiles, decode_whole, open_decode
from adaptive.types import SpatialTiles


def _steps(vae: Any, latents: Tensor, modes: Sequence[Any], strips: int, **kwargs: Any) -> Iterator[Tensor]:
    with open_decode(vae, latents, **kwargs) as stream:
        for mode in cycle(modes):
            if stream.finished:
                return
            with mode():
                yield stream.step(1, strips).clone()


STRIPWISE = [name for name in CONFIGS if family_of(shared(name)).strip_halo(shared(name)) is not None]
CASES = [(name, 1) for name in CONFIGS] + [(name, 2) for name in STRIPWISE]


@pytest.mark.parametrize("modes", [(torch.inference_mode, nullcontext), (nullcontext, torch.inference_mode)])
@pytest.mark.parametrize(("name", "strips"), CASES)
def test_inference_mode_may_begin_and_end_between_steps(name: str, strips: int, modes: Sequence[Any]) -> None:
    vae = shared(name)
    with torch.inference_mode():
        latents, kwargs = latents_of(vae, 4, sides=(4, 2)), kwargs_of(vae)
    torch.manual_seed(0)
    expected = decode_whole(vae, latents, **kwargs)
    torch.manual_seed(0)
    video = torch.cat(list(_steps(vae, latents, modes, strips, **kwargs)), 2)
    assert relative_error(video, expected) <= 2e-5


def test_tiles_that_are_blended_may_be_decoded_in_and_out_of_inference_mode() -> None:
    vae = shared("ltx-causal")
    latents = latents_of(vae, 2, sides=(8, 8))
    videos = []
    for modes in [(nullcontext,), (torch.inference_mode, nullcontext)]:
        tiles, pieces = BlendedTiles(vae, latents, SpatialTiles(2, 2)), []
        for mode in cycle(modes):
            if tiles.finished:
                break
            with mode():
                pieces.append(tiles.step(1).clone())
        videos.append(torch.cat(pieces, 2))
    assert torch.equal(videos[0], videos[1])


@pytest.mark.parametrize("schedule", [[1], [3, 1]])
@pytest.mark.parametrize("name", CONFIGS)
def test_under_autocast_every_chunk_has_the_dtype_and_the_frames_of_the_one_call(
    name: str, schedule: list[int]
) -> None:
    vae = shared(name)
    latents, kwargs = latents_of(vae, 5), kwargs_of(vae)
    with torch.autocast("cpu", torch.bfloat16):
        torch.manual_seed(0)
        expected = decode_whole(vae, latents, **kwargs)
        torch.manual_seed(0)
        with open_decode(vae, latents, **kwargs) as stream:
            pieces = list(run(stream, schedule))
    assert {piece.dtype for piece in pieces} == {expected.dtype} == {torch.bfloat16}
    assert relative_error(torch.cat(pieces, 2).float(), expected.float()) <= 0.03


@pytest.mark.parametrize("name", ["ltx-0.9.0", "ltx-0.9.1", "ltx-noise", "wan-2.1", "hunyuanvideo-1.5"])
def test_under_autocast_one_call_is_the_vae_s_own(name: str) -> None:
    vae = shared(name)
    latents, kwargs = latents_of(vae, 3), kwargs_of(vae)
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        torch.manual_seed(0)
        expected = vae.decode(latents, **kwargs).sample
        torch.manual_seed(0)
        assert torch.equal(decode_whole(vae, latents, **kwargs), expected)
