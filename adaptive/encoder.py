"""Encoding video to latents in chunks: exact, and in memory that does not grow with the length of the video.

Owns the cutting of a video (a tensor, or parts as they are read) into what the VAE's arithmetic allows, and
one encode's state. How latents come about is the engine's business (see `adaptive.stream.engine`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor

from adaptive.families import family_of
from adaptive.stream.engine import Engine, State
from adaptive.stream.placement import execution_device, wake, whole_calls

_UNKNOWN_LENGTH = 2**62 + 1  # a number of frames of every VAE's usual form, 8k+1


def encode(
    vae: Any,
    video: Tensor,
    *,
    frames_per_chunk: int | None = None,
    posterior: str = "mode",
    **encode_kwargs: Any,
) -> Tensor:
    """Latents of `video` (`[B, C, F, H, W]` in -1..1, on any device): `[B, C, T, h, w]` on the VAE's device.

    `frames_per_chunk` video frames are encoded at a time; None is the VAE's own one call. `posterior`: "mode"
    gives the most likely latents, "parameters" the mean and log-variance as `[B, 2C, T, h, w]` (what
    diffusers' `DiagonalGaussianDistribution` takes; VAEs without variance, as Cosmos, give the same for
    both). Raises `ValueError` for a number of frames the VAE
    cannot encode and `UnsupportedVae` where chunks are asked of a VAE that cannot stream.
    """
    if frames_per_chunk is not None and frames_per_chunk < video.shape[2]:
        parts = stream_encode(
            vae, video, frames_per_chunk=frames_per_chunk, posterior=posterior, **encode_kwargs
        )
        return torch.cat(list(parts), 2)
    _traits(vae).latent_frames(video.shape[2])
    with torch.no_grad(), whole_calls(vae):
        parameters = family_of(vae).encode_whole(vae, video.to(execution_device(vae)), encode_kwargs)
    return _chosen(vae, parameters, posterior)


def stream_encode(
    vae: Any,
    video: Tensor | Iterable[Tensor],
    *,
    frames_per_chunk: int,
    posterior: str = "mode",
    **encode_kwargs: Any,
) -> Iterator[Tensor]:
    """Encode in chunks of about `frames_per_chunk` video frames; yields latents `[B, C, t, h, w]` in order.

    `video` is one tensor `[B, C, F, H, W]` or its parts, of any lengths, as they are read. Values,
    `posterior` and errors as in `encode`; a number of frames the VAE cannot encode is only known at the end.
    """
    if frames_per_chunk < 1:
        raise ValueError(f"frames_per_chunk must be at least 1, got {frames_per_chunk}")
    _chosen(vae, torch.empty(1, 2), posterior)
    engine = family_of(vae).encode_engine(vae, encode_kwargs)
    total = video.shape[2] if isinstance(video, Tensor) else _UNKNOWN_LENGTH
    parts = _Parts([video] if isinstance(video, Tensor) else video)
    cut = partial(engine.take, wanted=frames_per_chunk, total=total)
    return _encoded(vae, engine, parts, cut, posterior)


def _encoded(
    vae: Any, engine: Engine, parts: _Parts, cut: Callable[[int], int], posterior: str
) -> Iterator[Tensor]:
    state: State = {}
    position = done = 0
    while True:
        chunk = parts.take(cut(position))
        position += chunk.shape[2]
        if parts.ended:
            expected = _traits(vae).latent_frames(position)
        wake(vae)
        device = execution_device(vae)
        with torch.no_grad(), whole_calls(vae):
            # Encoders that stream are causal: nothing is held back, so the chunk is the only limit needed.
            chunk = chunk.to(device)
            latents, state = engine.advance(state, chunk, limit=_UNKNOWN_LENGTH, ended=parts.ended)
        del chunk
        if latents is not None and latents.shape[2]:
            done += latents.shape[2]
            yield _chosen(vae, latents, posterior)
        del latents
        if parts.ended and done == expected:
            return


class _Parts:
    """A video read part by part, handed out in the lengths asked for; knows the end one part ahead."""

    def __init__(self, parts: Iterable[Tensor]) -> None:
        self._rest = iter(parts)
        self._next: Tensor | None = next(self._rest, None)
        if self._next is None:
            raise ValueError("the video has no frames")

    @property
    def ended(self) -> bool:
        return self._next is None or self._next.shape[2] == 0

    def take(self, frames: int) -> Tensor:
        """Up to `frames` frames; none once all have been handed out."""
        pieces: list[Tensor] = []
        wanted = frames
        while self._next is not None and wanted:
            piece = self._next[:, :, :wanted]
            wanted -= piece.shape[2]
            pieces.append(piece)
            self._next = self._next[:, :, piece.shape[2] :]
            if self._next.shape[2] == 0:
                self._last = self._next
                self._next = next(self._rest, None)
        if not pieces:
            return self._last
        return pieces[0] if len(pieces) == 1 else torch.cat(pieces, 2)


def _chosen(vae: Any, parameters: Tensor, posterior: str) -> Tensor:
    if posterior == "parameters" or (posterior == "mode" and not family_of(vae).has_variance):
        return parameters
    if posterior == "mode":
        return parameters.chunk(2, dim=1)[0].clone()
    raise ValueError(f"posterior must be 'mode' or 'parameters', got {posterior!r}")


def _traits(vae: Any) -> Any:
    return family_of(vae).traits(type(vae).__name__, vae.config)
