"""Approximate decoding, if no exact option fits: decode parts of the video separately.

Owns two streams with the interface of `DecodeStream`. `IndependentChunks` decodes some frames at a time as if
they were a video on their own, as diffusers' pipelines do with `decode_chunk_size`. `BlendedTiles` decodes
overlapping tiles of the frame one after another, each over the whole length (exactly in time if the VAE can
stream), and cross-fades them. Both measure how visible their seams are (`adaptive.stream.seams`).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from adaptive.stream.decode_stream import DecodeStream, open_decode
from adaptive.stream.seams import SeamScore
from adaptive.stream.state import computing
from adaptive.stream.vae_view import as_view
from adaptive.stream.whole import decode_whole
from adaptive.tiles import Span, overlap_latent_pixels, overlapping_spans
from adaptive.types import SpatialTiles


class IndependentChunks:
    """Chunks of any size, each decoded by one call of the VAE without state between them."""

    def __init__(self, vae: Any, latents: Tensor, **decode_kwargs: Any) -> None:
        """`vae` may be a `VaeView`, which has the arguments already."""
        self._view = as_view(vae, decode_kwargs)
        self._latents = latents
        self._seams = SeamScore()
        self.position = 0

    state_bytes = 0
    waiting_bytes = 0

    @property
    def finished(self) -> bool:
        """Whether every frame has been returned."""
        return self.position == self._latents.shape[2]

    @property
    def seam_score(self) -> float | None:
        """How visible the seams are so far, see `SeamScore.value`."""
        return self._seams.value

    def step(self, latent_frames: int, strips: int = 1) -> Tensor:  # noqa: ARG002 - frames are decoded whole
        """Return the next frames, `[B, C, f, H, W]`. A step that raises may be repeated."""
        if latent_frames < 1:
            raise ValueError(f"latent_frames must be at least 1, got {latent_frames}")
        chunk = self._latents[:, :, self.position : self.position + latent_frames]
        frames = decode_whole(self._view, chunk)
        self._seams.add_temporal_seam(frames)
        self.position += chunk.shape[2]
        return frames

    def close(self) -> None:
        """Drop the references to the VAE and the latents."""
        self._view = self._latents = None  # type: ignore[assignment]


class BlendedTiles:
    """A grid of overlapping tiles. Steps return frames once the last tile is done."""

    def __init__(
        self, vae: Any, latents: Tensor, tiles: SpatialTiles, *, done: int = 0, **decode_kwargs: Any
    ) -> None:
        """`latents` are `[B, C, T, h, w]`. The first `done` video frames are decoded but not returned. `vae`
        may be a `VaeView`, which has the arguments already.
        """
        self._view = as_view(vae, decode_kwargs)
        self._latents = latents
        self._ratio = self._view.traits.spatial_ratio
        self._total = self._view.video_frames(latents.shape[2])
        self._overlap = overlap_latent_pixels(self._ratio)
        rows = overlapping_spans(latents.shape[3], tiles.rows, self._overlap)
        columns = overlapping_spans(latents.shape[4], tiles.columns, self._overlap)
        self._tiles = [(row, column) for row in rows for column in columns]
        self._seams = SeamScore(self._lines(rows), self._lines(columns), self._overlap * self._ratio // 2)
        self._stream: DecodeStream | None = None
        self._canvas: Tensor | None = None
        self._unblended: Tensor | None = None  # decoded frames of the current tile that are not in the canvas
        self._faded = False  # whether the weights have been applied to them
        self._tile = 0
        self._time = 0  # frames of the current tile that are in the canvas or skipped
        self._skipped = done
        self._returned = done

    @property
    def finished(self) -> bool:
        """Whether every frame has been returned."""
        return self._returned == self._total

    @property
    def position(self) -> int:
        """Share of the work that is done, as a number of latent frames."""
        whole: int = self._latents.shape[2]
        if self._tile == len(self._tiles):
            return whole
        share = (self._tile + self._time / self._total) / len(self._tiles)
        return min(whole - 1, int(whole * share))

    @property
    def state_bytes(self) -> int:
        """Bytes of the canvas and of the current tile's state."""
        kept = sum(tensor.nbytes for tensor in (self._canvas, self._unblended) if tensor is not None)
        return kept + (0 if self._stream is None else self._stream.state_bytes)

    @property
    def waiting_bytes(self) -> int:
        """See `DecodeStream.waiting_bytes`."""
        unblended = 0 if self._unblended is None else self._unblended.nbytes
        return unblended + (0 if self._stream is None else self._stream.waiting_bytes)

    @property
    def seam_score(self) -> float | None:
        """How visible the seams are so far, see `SeamScore.value`."""
        return self._seams.value

    def step(self, latent_frames: int, strips: int = 1) -> Tensor:  # noqa: ARG002 - tiles are whole
        """Decode one chunk of one tile and return no frames; once all tiles are done, return frames.

        A step that raises may be repeated. Frames whose blending failed are blended first.
        """
        if latent_frames < 1:
            raise ValueError(f"latent_frames must be at least 1, got {latent_frames}")
        if self._tile < len(self._tiles):
            self._advance(latent_frames)
            assert self._canvas is not None
            return self._canvas[:, :, :0]
        assert self._canvas is not None
        start = self._returned - self._skipped
        piece = self._canvas[:, :, start : start + max(8, latent_frames)]
        self._seams.add_spatial_seams(piece)
        self._returned += piece.shape[2]
        return piece

    def close(self) -> None:
        """Drop the references to the VAE, the latents and the canvas."""
        if self._stream is not None:
            self._stream.close()
        self._view = self._latents = self._stream = None  # type: ignore[assignment]
        self._canvas = self._unblended = None

    def _advance(self, latent_frames: int) -> None:
        if self._canvas is None:  # allocate before decoding: a step that fails must have changed nothing
            self._canvas = self._blank()
        row, column = self._tiles[self._tile]
        if self._unblended is None:
            tile = self._latents[:, :, :, slice(*row), slice(*column)]
            self._unblended, self._faded = self._decoded(tile, latent_frames), False
            self._check_frames(self._unblended.shape[2])
        fresh = self._unblended[:, :, max(0, self._skipped - self._time) :]
        if fresh.shape[2]:
            self._blend(fresh, row, column, max(self._time, self._skipped) - self._skipped)
        self._time += self._unblended.shape[2]
        self._unblended = None
        if self._time == self._total:
            self._tile, self._time, self._stream = self._tile + 1, 0, None

    def _check_frames(self, count: int) -> None:
        """Raise `AssertionError` if the current tile cannot get all its frames: it would never end."""
        done = self._time + count
        ended = self._stream is None or self._stream.finished
        if done > self._total or (ended and done < self._total):
            raise AssertionError(f"a tile gave {done} of {self._total} video frames")

    def _blank(self) -> Tensor:
        batch, _, _, height, width = self._latents.shape
        view = self._view
        channels = view.family.video_channels(view.vae.config)
        sides = self._total - self._skipped, height * self._ratio, width * self._ratio
        with computing():  # later steps write to it
            return torch.zeros(batch, channels, *sides, dtype=view.dtype, device=view.device)

    def _decoded(self, latents: Tensor, latent_frames: int) -> Tensor:
        whole = self._view.refusal is not None or latent_frames >= latents.shape[2]
        if self._stream is None and whole:
            return decode_whole(self._view, latents)
        if self._stream is None:
            self._stream = open_decode(self._view, latents)
        return self._stream.step(latent_frames)

    def _blend(self, frames: Tensor, row: Span, column: Span, start: int) -> None:
        """Add a tile's frames to the canvas.

        They fade over each overlap, so that the weights at a pixel add up to one. A failure leaves frames and
        canvas so that blending can be repeated: what may fail comes before each of the two changes.
        """
        assert self._canvas is not None
        if not self._faded:
            weights = self._weights(row, 3, frames)[:, None] * self._weights(column, 4, frames)
            frames.mul_(weights)
            self._faded = True
        ratio = self._ratio
        place = self._canvas[:, :, start : start + frames.shape[2]]
        rows = slice(row.start * ratio, row.stop * ratio)
        columns = slice(column.start * ratio, column.stop * ratio)
        place[..., rows, columns].add_(frames)

    def _weights(self, span: Span, dim: int, frames: Tensor) -> Tensor:
        width = self._overlap * self._ratio
        weights = frames.new_ones(span.size * self._ratio)
        ramp = (torch.arange(width, device=frames.device, dtype=torch.float32) + 0.5) / width
        if span.start > 0:
            weights[:width] = ramp.to(weights.dtype)
        if span.stop < self._latents.shape[dim]:
            weights[-width:] = (1 - ramp).to(weights.dtype)
        return weights

    def _lines(self, spans: tuple[Span, ...]) -> list[int]:
        """Return the pixel at the middle of each overlap."""
        return [(span.start + self._overlap // 2) * self._ratio for span in spans[1:]]
