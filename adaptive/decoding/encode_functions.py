"""The functions `encode` and `stream_encode`: one call of the VAE, or chunks of a given size.

Owns the choice of the posterior's values. The stream cuts the video and computes the latents (see
`adaptive.stream.encode_stream`); `AdaptiveEncoder` chooses chunk sizes (see `adaptive.decoding.encoder`).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor

from adaptive.families import family_of
from adaptive.stream.encode_stream import EncodeStream, encode_whole
from adaptive.stream.inputs import refuse_gradient


def encode(
    vae: Any,
    video: Tensor,
    *,
    frames_per_chunk: int | None = None,
    posterior: str = "mode",
    **encode_kwargs: Any,
) -> Tensor:
    """Latents of `video` (`[B, C, F, H, W]` in -1..1, on any device): `[B, C, T, h, w]` on the VAE's device.

    `frames_per_chunk` video frames are encoded at a time; None means one call of the VAE's own `encode`.
    `posterior`: "mode" gives the most likely latents, "parameters" the mean and log-variance as
    `[B, 2C, T, h, w]`, which diffusers' `DiagonalGaussianDistribution` takes. VAEs without variance, such as
    Cosmos, give the same for both. Raises `ValueError` for a number of frames that the VAE cannot encode, and
    `UnsupportedVae` for chunks of a VAE that cannot stream. No gradient is recorded: a video that requires
    one is refused with `ValueError`.
    """
    refuse_gradient("encode", video, encode_kwargs)
    if frames_per_chunk is not None and frames_per_chunk < video.shape[2]:
        parts = stream_encode(
            vae, video, frames_per_chunk=frames_per_chunk, posterior=posterior, **encode_kwargs
        )
        return torch.cat(list(parts), 2)
    parameters = encode_whole(vae, video, **encode_kwargs)
    return posterior_values(vae, parameters, posterior)


def stream_encode(
    vae: Any,
    video: Tensor | Iterable[Tensor],
    *,
    frames_per_chunk: int,
    posterior: str = "mode",
    **encode_kwargs: Any,
) -> Iterator[Tensor]:
    """Encode in chunks of about `frames_per_chunk` video frames; yields latents `[B, C, t, h, w]` in order.

    `video` is one tensor `[B, C, F, H, W]`, or its parts in order, of any lengths. Values, `posterior` and
    errors are those of `encode`; in parts, an invalid number of frames is found at the end.
    """
    if frames_per_chunk < 1:
        raise ValueError(f"frames_per_chunk must be at least 1, got {frames_per_chunk}")
    posterior_values(vae, torch.empty(1, 2), posterior)  # raises before any frame is read
    refuse_gradient("encode", video, encode_kwargs)
    parts, total = ([video], video.shape[2]) if isinstance(video, Tensor) else (video, None)
    stream = EncodeStream(vae, parts, total, **encode_kwargs)
    return _steps(vae, stream, frames_per_chunk, posterior)


def _steps(vae: Any, stream: EncodeStream, frames_per_chunk: int, posterior: str) -> Iterator[Tensor]:
    while not stream.finished:
        latents = stream.step(frames_per_chunk)
        if latents is not None:
            yield posterior_values(vae, latents, posterior)
        del latents  # or it would stay alive through the next step


def posterior_values(vae: Any, parameters: Tensor, posterior: str) -> Tensor:
    """What `encode` returns for parameters of the posterior. `ValueError` for an unknown `posterior`."""
    if posterior == "parameters" or (posterior == "mode" and not family_of(vae).has_variance):
        return parameters
    if posterior == "mode":
        return parameters.chunk(2, dim=1)[0].clone()
    raise ValueError(f"posterior must be 'mode' or 'parameters', got {posterior!r}")
