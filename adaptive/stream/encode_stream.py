"""Encode a video in steps of any size, with the latents of a single call.

Owns positions, devices and atomicity of one encode, and cuts a video that is read part by part. The engine
computes the latents (see `engines.engine`); the family chooses the engine (see `adaptive.families`).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor

from adaptive.families import family_of
from adaptive.stream.engines.engine import State
from adaptive.stream.inputs import dtype_explained
from adaptive.stream.layers.convolution import convolutions_for
from adaptive.stream.offload import execution_device, run_offload_hook, without_splitting
from adaptive.stream.state import computing, tensors
from adaptive.stream.vae_view import VaeView, as_encode_view, given_arguments

_UNKNOWN_LENGTH = 2**62 + 1  # has the form 8k+1, which every VAE accepts
_MOST_IDLE_STEPS = 2  # in a row, of steps that feed and give nothing: encoders that stream have no delay


class EncodeStream:
    """One encode in progress: `video` is read in parts `[B, C, f, H, W]` of any length.

    A step that raises leaves the stream unchanged and may be repeated with fewer frames. Other threads may
    use the VAE meanwhile. Its layers have dispatchers (see `intercept`) until the last latent frame, until
    `close` or until the stream is garbage.
    """

    def __init__(
        self, vae: Any, video: Iterable[Tensor], total: int | None = None, **encode_kwargs: Any
    ) -> None:
        """`total`: number of frames, if known in advance. `encode_kwargs`: keyword arguments of `vae.encode`.

        `vae` may be a `VaeView` of an encode, which has them already. Raises `UnsupportedVae` if this VAE
        cannot encode in steps, `ValueError` for a video without frames.
        """
        view = as_encode_view(vae, encode_kwargs)
        self._vae, self._device, self._traits = view.vae, view.device, view.traits
        self._engine = view.streaming_engine()
        self._reader = _VideoReader(video)
        self._engine.open()
        self._total = total or _UNKNOWN_LENGTH
        self._state: State = {}
        self._idle_steps = 0
        self._expected: int | None = None
        self.position = 0
        self.latent_frames_done = 0

    @property
    def finished(self) -> bool:
        """Whether every latent frame has been returned."""
        return self.latent_frames_done == self._expected

    @property
    def state_bytes(self) -> int:
        """Bytes of the tensors kept between steps; see `DecodeStream.state_bytes`."""
        distinct = {id(tensor): tensor.nbytes for tensor in tensors(self._state)}
        return sum(distinct.values())

    def next_frames(self, video_frames: int) -> int:
        """Number of frames that `step(video_frames)` would feed, if the video has as many left."""
        return self._engine.take(self.position, video_frames, self._total)

    def step(self, video_frames: int) -> Tensor | None:
        """Feed about `video_frames` more frames; return the latent frames that are finished, or None.

        They are parameters of the posterior, `[B, 2C, t, h, w]`. The family may feed fewer frames or more.
        Any exception of the encoder leaves the stream unchanged. Raises `ValueError` at the end of the video
        if its number of frames is one that the VAE cannot encode.
        """
        chunk = self._reader.take(self.next_frames(video_frames))
        try:
            latents, state = self._advance(chunk)
        except BaseException:
            self._reader.put_back(chunk)
            raise
        self.position += chunk.shape[2]
        self._state = state
        count = 0 if latents is None else latents.shape[2]
        self.latent_frames_done += count
        self._idle_steps = 0 if count or chunk.shape[2] else self._idle_steps + 1
        if self._idle_steps == _MOST_IDLE_STEPS:
            raise AssertionError(
                f"the encode gave {self.latent_frames_done} of {self._expected} latent frames, "
                f"then none in {self._idle_steps} steps"
            )
        if self.finished:
            self._engine.close()
        return latents if count else None

    def close(self) -> None:
        """Let go of the VAE's layers. Calling it again does nothing."""
        self._engine.close()

    def _advance(self, chunk: Tensor) -> tuple[Tensor | None, State]:
        ended = self._reader.ended
        if ended:
            self._expected = self._traits.latent_frames(self.position + chunk.shape[2])
        run_offload_hook(self._vae)
        with (
            computing(),
            without_splitting(self._vae),
            convolutions_for(self._device),
            dtype_explained(self._vae, "video frames", chunk),
        ):
            # Encoders that stream are causal: they keep nothing back, so the chunk is the only limit needed.
            chunk = chunk.to(self._device)
            return self._engine.advance(self._state, chunk, limit=_UNKNOWN_LENGTH, ended=ended)


def encode_whole(vae: Any, video: Tensor, **encode_kwargs: Any) -> Tensor:
    """Parameters of the posterior of `video` (`[B, C, F, H, W]`) by a single call of diffusers' own `encode`.

    Slicing, tiling and framewise encoding are off, except in a VAE that nothing is known about. `vae` may be
    a `VaeView` of an encode, which has the arguments already. Raises `ValueError` for a number of frames that
    the VAE cannot encode.
    """
    if isinstance(vae, VaeView):
        vae, family, device, kwargs = vae.vae, vae.family, vae.device, vae.kwargs
    else:
        family, device = family_of(vae), execution_device(vae)
        kwargs = given_arguments(encode_kwargs, device)
    if family.is_known:
        family.traits_of(vae).latent_frames(video.shape[2])  # raises for a number that it cannot encode
    whole = without_splitting(vae) if family.is_known else nullcontext(vae)
    explained = dtype_explained(vae, "video frames", video)
    with torch.no_grad(), whole as called, convolutions_for(device), explained:
        parameters: Tensor = family.encode_whole(called, video.to(device), kwargs)
        return parameters


class _VideoReader:
    """Reads a video part by part and returns chunks of any length. Reads one part ahead, to know the end."""

    def __init__(self, parts: Iterable[Tensor]) -> None:
        self._rest = iter(parts)
        self._ready: deque[Tensor] = deque()
        self._fetch()
        if not self._ready:
            raise ValueError("the video has no frames")
        batch, channels, _, height, width = self._ready[0].shape
        self._none = self._ready[0].new_empty(batch, channels, 0, height, width)

    @property
    def ended(self) -> bool:
        return not self._ready

    def take(self, frames: int) -> Tensor:
        """Return up to `frames` frames; an empty tensor after the last."""
        pieces: list[Tensor] = []
        while frames and self._ready:
            piece = self._ready.popleft()
            if piece.shape[2] > frames:
                self._ready.appendleft(piece[:, :, frames:])
                piece = piece[:, :, :frames]
            frames -= piece.shape[2]
            pieces.append(piece)
            if not self._ready:
                self._fetch()
        if not pieces:
            return self._none
        return pieces[0] if len(pieces) == 1 else torch.cat(pieces, 2)

    def put_back(self, chunk: Tensor) -> None:
        """Put back the frames taken last, so that the next `take` returns them first."""
        if chunk.shape[2]:
            self._ready.appendleft(chunk)

    def _fetch(self) -> None:
        part = next((part for part in self._rest if part.shape[2]), None)
        if part is not None:
            self._ready.append(part)
