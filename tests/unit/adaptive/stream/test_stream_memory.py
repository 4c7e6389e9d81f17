"""What streaming costs in live bytes, traced on meta tensors."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from stream_vaes import run, shared
from torch import Tensor

from adaptive.decoding.encoder import stream_encode
from adaptive.memory.live_bytes import trace_peak
from adaptive.stream import open_decode
from tests.bench.decode_cases import CASES, build


@contextmanager
def on_meta(name: str) -> Iterator[Any]:
    vae = shared(name)
    with torch.device("meta"):
        yield type(vae)(**vae.config).eval()


def decode_peak(vae: Any, latents: Tensor, chunk: int, **kwargs: Any) -> int:
    def consume() -> None:
        with open_decode(vae, latents, **kwargs) as stream:
            for frames in run(stream, [chunk]):
                del frames

    return trace_peak(consume).peak_bytes


@pytest.mark.parametrize("name", ["ltx-0.9.0", "ltx-causal", "wan-2.1", "kl"])
def test_twice_the_frames_decode_in_the_same_memory(name: str) -> None:
    with on_meta(name) as vae:
        channels = vae.config.get("latent_channels") or vae.config.get("z_dim")
        short, long = (torch.empty(1, channels, frames, 4, 4, device="meta") for frames in (12, 23))
        assert decode_peak(vae, long, 2) <= 1.01 * decode_peak(vae, short, 2)


@pytest.mark.parametrize("name", ["ltx-0.9.0", "wan-2.1", "kl"])
def test_twice_the_frames_encode_in_the_same_memory(name: str) -> None:
    def peak(vae: Any, frames: int) -> int:
        parts = (torch.empty(1, 3, 1, 64, 64, device="meta") for _ in range(frames))

        def consume() -> None:
            for latents in stream_encode(vae, parts, frames_per_chunk=8):
                del latents

        return trace_peak(consume).peak_bytes

    with on_meta(name) as vae:
        assert peak(vae, 129) <= 1.01 * peak(vae, 65)


@pytest.mark.parametrize("name", ["ltx-0.9.0", "ltx-0.9.5", "ltx-2"])
def test_the_published_ltx_streams_one_latent_frame_in_less_than_diffusers_framewise_decoding_takes(
    name: str,
) -> None:
    case = CASES[name]
    vae = build(case, "meta")
    kwargs = {key: value.to("meta") for key, value in case.kwargs.items()}
    latents = torch.empty(case.latents, device="meta")
    ours = decode_peak(vae, latents, 1, **kwargs)
    assert case.frugal is not None
    with case.frugal.applied(vae):
        theirs = trace_peak(lambda: vae.decode(latents, **kwargs).sample).peak_bytes
    assert ours <= theirs


@pytest.mark.parametrize("name", ["wan-2.1", "wan-2.2", "qwen-image"])
def test_wan_streams_in_less_than_its_own_call_takes_for_each_latent_frame(name: str) -> None:
    case = CASES[name]
    vae = build(case, "meta")
    latents = torch.empty(*case.latents[:2], 3, *case.latents[3:], device="meta")
    video = trace_peak(lambda: vae.decode(latents).sample)
    assert decode_peak(vae, latents, 1) <= 0.87 * (video.peak_bytes - video.left_bytes)
