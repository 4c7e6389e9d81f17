"""What must hold of any streamed run against one call, on any device: the body of the property tests."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import cycle
from typing import Any
from unittest.mock import patch

import torch
from diffusers.models.normalization import RMSNorm
from stream_vaes import CONFIGS, kwargs_of, latents_of, relative_error, shared, streamed
from torch import Tensor

from adaptive.decoding.encoder import encode
from adaptive.families import traits_of
from adaptive.stream import decode_whole
from adaptive.stream.encode_stream import EncodeStream

DECODED = tuple(CONFIGS)
ENCODED = (
    *("ltx-0.9.0", "ltx-0.9.5", "ltx2", "wan-2.1", "wan-2.2", "cogvideox", "kl", "svd"),
    *("hunyuanvideo-1.5", "mochi", "cosmos", "cosmos-rearrange", "qwenimage", "magvit"),
)
TOLERANCE = {torch.float32: 2e-5, torch.float64: 1e-12}
HALF_SHARE = 1.1  # of the error that one call in half precision has itself
# Norms over single channels of two pixels would magnify rounding a thousandfold.
_LATENT_SIDES = {"mochi": (3, 4)}
# In half precision they do so at any size: which way is nearer to single precision is luck (0.8 to 1.2).
_ILL_CONDITIONED = ("mochi",)


def video_of(name: str, latent_frames: int, *, batch: int = 1, dtype: torch.dtype = torch.float32) -> Tensor:
    """Random video `[B, 3, F, H, W]` of so many latent frames."""
    vae = shared(name)
    traits = traits_of(type(vae).__name__, vae.config)
    ratio = vae.config.get("spatial_compression_ratio") or traits.spatial_ratio
    generator = torch.Generator().manual_seed(1)
    rows, columns = _LATENT_SIDES.get(name, (1, 2))
    shape = (batch, 3, traits.video_frames(latent_frames), rows * ratio, columns * ratio)
    return (torch.rand(shape, generator=generator) * 2 - 1).to(dtype)


def encoded(vae: Any, video: Tensor, schedule: Sequence[int]) -> Tensor:
    """The posterior's parameters, encoded in steps that take the schedule's numbers of frames in turn."""
    stream = EncodeStream(vae, _unevenly(video), video.shape[2])
    return torch.cat(list(_stepped(stream, schedule)), 2)


def _stepped(stream: EncodeStream, schedule: Sequence[int]) -> Iterator[Tensor]:
    sizes = cycle(schedule)
    while not stream.finished:
        latents = stream.step(next(sizes))
        if latents is not None:
            yield latents


def _unevenly(video: Tensor) -> Iterable[Tensor]:
    position, sizes = 0, cycle((1, 4, 2))
    while position < video.shape[2]:
        size = next(sizes)
        yield video[:, :, position : position + size]
        position += size


def decode_error(name: str, dtype: torch.dtype, frames: int, batch: int, schedule: Sequence[int]) -> float:
    """Relative error of a streamed decode against one call."""
    vae = shared(name, dtype)
    latents, kwargs = latents_of(vae, frames, batch=batch), kwargs_of(vae, batch)
    with _in_full(dtype):
        torch.manual_seed(3)
        expected = decode_whole(vae, latents, **kwargs)
        torch.manual_seed(3)
        return relative_error(streamed(vae, latents, schedule, **kwargs), expected)


def encode_error(name: str, dtype: torch.dtype, frames: int, batch: int, schedule: Sequence[int]) -> float:
    """Relative error of a streamed encode against one call."""
    vae, video = shared(name, dtype), video_of(name, frames, batch=batch, dtype=dtype)
    with _in_full(dtype):
        expected = encode(vae, video, posterior="parameters")
        return relative_error(encoded(vae, video, schedule), expected)


def half_errors(
    name: str, dtype: torch.dtype, frames: int, schedule: Sequence[int], device: str = "cpu"
) -> dict[str, tuple[float, float]]:
    """Errors in half precision against one call in float32, of one call and of a stream: decode, encode.

    Root mean squares: a maximum over few pixels would be luck.
    """
    exact, half = shared(name).to(device), shared(name, dtype).to(device)
    latents = latents_of(half, frames).to(device)
    kwargs = {key: value.to(device) for key, value in kwargs_of(half).items()}
    exactly = {key: value.float() for key, value in kwargs.items()}
    torch.manual_seed(3)
    reference = decode_whole(exact, latents.float(), **exactly)
    torch.manual_seed(3)
    whole = decode_whole(half, latents, **kwargs)
    torch.manual_seed(3)
    ours = streamed(half, latents, schedule, **kwargs)
    found = {"decode": (_rms(whole, reference), _rms(ours, reference))}
    if name in ENCODED and name not in _ILL_CONDITIONED:
        video = video_of(name, frames, dtype=dtype).to(device)
        reference = encode(exact, video.float(), posterior="parameters")
        whole = encode(half, video, posterior="parameters")
        found["encode"] = (_rms(whole, reference), _rms(encoded(half, video, schedule), reference))
    return found


def _rms(found: Tensor, reference: Tensor) -> float:
    assert found.shape == reference.shape
    return ((found.float() - reference).square().mean() / reference.square().mean()).sqrt().item()


@contextmanager
def _in_full(dtype: torch.dtype) -> Iterator[None]:
    """diffusers' RMSNorm takes its variance in float32, which would hide errors below 1e-7 in float64."""
    if dtype != torch.float64:
        yield
        return

    def forward(self: RMSNorm, frames: Tensor) -> Tensor:
        return frames * torch.rsqrt(frames.pow(2).mean(-1, keepdim=True) + self.eps)

    with patch.object(RMSNorm, "forward", forward):
        yield
