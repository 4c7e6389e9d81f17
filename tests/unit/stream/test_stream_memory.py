"""What streaming costs in live bytes, traced on meta tensors."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKLLTXVideo
from stream_vaes import run, shared
from torch import Tensor

from adaptive.encoder import stream_encode
from adaptive.stream import open_decode
from adaptive.trace import trace_peak


@contextmanager
def on_meta(name: str) -> Iterator[Any]:
    vae = shared(name)
    with torch.device("meta"):
        yield type(vae)(**vae.config).eval()


def decode_peak(vae: Any, latents: Tensor, chunk: int) -> int:
    def consume() -> None:
        with open_decode(vae, latents) as stream:
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


def test_the_published_ltx_streams_one_latent_frame_in_less_than_diffusers_framewise_decoding_takes() -> None:
    with torch.device("meta"):
        vae = AutoencoderKLLTXVideo().eval()
    latents = torch.empty(1, 128, 13, 2, 3, device="meta")  # 97 frames
    ours = decode_peak(vae, latents, 1)
    vae.use_framewise_decoding = True
    assert ours <= trace_peak(lambda: vae.decode(latents).sample).peak_bytes
