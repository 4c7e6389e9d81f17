"""Threads share a VAE's settings and torch's random numbers: each decode is right all the same."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import Event, Thread
from typing import Any

import pytest
import torch
from stream_vaes import build, latents_of, relative_error, streamed
from torch import Tensor

from adaptive.decoding.encode_functions import stream_encode
from adaptive.stream import decode_whole
from adaptive.stream.offload import without_splitting

SECONDS = 60  # a bound for a hang, never waited for


def tiled(name: str) -> Any:
    """A VAE whose own call cuts even small pictures into tiles, which changes the result."""
    vae = build(name).requires_grad_(False)
    vae.enable_tiling()
    if name == "kl":
        vae.tile_latent_min_size, vae.tile_sample_min_size = 4, 8
    else:
        ratio = vae.spatial_compression_ratio
        vae.tile_sample_min_height = vae.tile_sample_min_width = 4 * ratio
        vae.tile_sample_stride_height = vae.tile_sample_stride_width = 2 * ratio
    return vae


def latents_for(vae: Any, name: str) -> tuple[Tensor, Tensor]:
    """As streams take them, and as the VAE's own call does."""
    video = latents_of(vae, 3, sides=(6, 6))
    return video, video[0].transpose(0, 1).contiguous() if name == "kl" else video


@contextmanager
def meanwhile(vae: Any, work: Callable[[], Any]) -> Iterator[list[Any]]:
    """Run `work` in another thread, to its end, in the middle of the first decode."""
    found: list[Any] = []
    begun = Event()

    def interrupt(*_: object) -> None:
        if not begun.is_set():
            begun.set()
            thread = Thread(target=lambda: found.append(work()))
            thread.start()
            thread.join(SECONDS)

    handle = vae.decoder.conv_in.register_forward_hook(interrupt)
    yield found
    handle.remove()
    assert begun.is_set()


@pytest.mark.parametrize("whole", [True, False])
@pytest.mark.parametrize("name", ["kl", "wan-2.1", "ltx-causal"])
@torch.no_grad()
def test_a_plain_decode_beside_a_planned_one_cuts_its_tiles(name: str, whole: bool) -> None:
    vae = tiled(name)
    video, own = latents_for(vae, name)
    plain = vae.decode(own).sample
    vae.use_tiling = False
    expected = decode_whole(vae, video)
    vae.use_tiling = True
    assert (plain.flatten() - vae_frames(expected, name).flatten()).abs().max() > 1e-3, "tiles change it"
    with meanwhile(vae, lambda: vae.decode(own).sample) as others:
        found = decode_whole(vae, video) if whole else streamed(vae, video, [1])
    assert relative_error(found, expected) <= 2e-5
    assert torch.equal(others[0], plain)
    assert vae.use_tiling


def vae_frames(video: Tensor, name: str) -> Tensor:
    return video[0].transpose(0, 1) if name == "kl" else video


@torch.no_grad()
def test_frames_that_are_encoded_in_chunks_are_not_tiled() -> None:
    vae = tiled("kl")
    clip = torch.rand(1, 3, 4, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1
    vae.use_tiling = False
    expected = torch.cat(list(stream_encode(vae, clip, frames_per_chunk=4)), 2)
    vae.use_tiling = True
    found = torch.cat(list(stream_encode(vae, clip, frames_per_chunk=2)), 2)
    assert relative_error(found, expected) <= 2e-5


@pytest.mark.parametrize("replaced", [False, True])
def test_the_flags_are_as_before_after_decodes_that_end_in_any_order(replaced: bool) -> None:
    vae = tiled("kl")
    if replaced:  # such a method is bound to the VAE itself, whose flags must then be off
        vae.decode = torch.compiler.disable(vae.decode)
    first, second = without_splitting(vae), without_splitting(vae)
    called = first.__enter__()
    assert not called.use_tiling
    assert vae.use_tiling is not replaced
    assert not second.__enter__().use_tiling
    first.__exit__(None, None, None)
    assert vae.use_tiling is not replaced, "the second is not done"
    second.__exit__(None, None, None)
    assert vae.use_tiling


@torch.no_grad()
def test_random_numbers_that_another_thread_draws_do_not_change_a_stream_s_noise() -> None:
    vae = build("ltx-noise")
    latents = latents_of(vae, 4)
    torch.manual_seed(1)
    expected = decode_whole(vae, latents)

    def draw_elsewhere(*_: object) -> None:
        thread = Thread(target=torch.randn, args=(5,))
        thread.start()
        thread.join(SECONDS)

    vae.decoder.mid_block.register_forward_hook(draw_elsewhere)
    torch.manual_seed(1)
    assert relative_error(streamed(vae, latents, [1]), expected) <= 2e-5


def test_a_call_that_fails_leaves_the_random_numbers_as_they_were() -> None:
    vae = build("ltx-noise")
    latents = latents_of(vae, 3)

    def fail(*_: object) -> None:
        raise torch.OutOfMemoryError("scripted")

    before = torch.get_rng_state()
    handle = vae.decoder.conv_out.register_forward_hook(fail)
    with pytest.raises(torch.OutOfMemoryError):
        decode_whole(vae, latents)
    assert torch.equal(torch.get_rng_state(), before)
    handle.remove()
    decode_whole(vae, latents)
    assert not torch.equal(torch.get_rng_state(), before)
