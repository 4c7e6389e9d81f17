"""Layer sweeps: exact decoding in little device memory where norms span all frames of a video.

A norm over time needs every frame before it can give any, so no chunk can go all the way through. Instead
each layer is run over the whole video, some frames at a time, with activations kept in host memory between
layers. Owns those reels of frames and the two-pass statistics; which layers there are is the family's
business.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(slots=True)
class Parking:
    """How a trace sees parked frames: of `same_memory` as the device, as on the CPU, or elsewhere; then
    `peak_bytes` is the most that ever lay there.
    """

    same_memory: bool
    live_bytes: int = 0
    peak_bytes: int = 0

    @contextmanager
    def active(self) -> Iterator[None]:
        """Frames of meta tensors that are parked within are counted here."""
        token = _PARKING.set(self)
        try:
            yield
        finally:
            _PARKING.reset(token)

    def add(self, size_bytes: int) -> None:
        """Bytes more, or less."""
        self.live_bytes += size_bytes
        self.peak_bytes = max(self.peak_bytes, self.live_bytes)


_PARKING: ContextVar[Parking | None] = ContextVar("parking", default=None)


class _Absent:
    """A parked frame of a meta tensor: on the device it takes nothing."""

    def __init__(self, frame: Tensor, parking: Parking | None) -> None:
        self.shape = frame.shape
        self.dtype = frame.dtype
        if parking is not None:
            parking.add(frame.nbytes)
            weakref.finalize(self, parking.add, -frame.nbytes)


class HostFrames:
    """Frames `[B, C, H, W]` of one video, parked in host memory, handed out as `[B, C, n, H, W]` on the
    device.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._frames: list[Tensor | _Absent] = []

    def __len__(self) -> int:
        return len(self._frames)

    def append(self, chunk: Tensor) -> None:
        """Park the frames of `[B, C, n, H, W]`."""
        parking = _PARKING.get()
        for frame in chunk.unbind(2):
            if frame.device.type != "meta":
                self._frames.append(frame.to("cpu", copy=True, memory_format=torch.contiguous_format))
            elif parking is not None and parking.same_memory:
                self._frames.append(frame.clone(memory_format=torch.contiguous_format))
            else:
                self._frames.append(_Absent(frame, parking))

    def frames(self, start: int, stop: int) -> Tensor:
        """Frames start to stop, on the device."""
        return torch.stack([self._fetched(frame) for frame in self._frames[start:stop]], 2)

    def take(self, count: int) -> Tensor:
        """The first `count` frames, on the device; the reel lets go of them."""
        frames = self.frames(0, count)
        del self._frames[:count]
        return frames

    def pieces(self, size: int) -> Iterator[Tensor]:
        """All frames, `size` at a time."""
        for start in range(0, len(self), size):
            yield self.frames(start, start + size)

    def drained(self, size: int) -> Iterator[Tensor]:
        """All frames, `size` at a time; the reel lets go of each."""
        while self._frames:
            yield self.take(size)

    def windows(self, size: int) -> Iterator[tuple[Tensor, slice, range]]:
        """Pieces of `size` frames with one neighbour on either side where there is one.

        Gives the piece with its neighbours, where in it the piece itself is, and which frames of the reel it
        is.
        """
        for start in range(0, len(self), size):
            stop = min(len(self), start + size)
            first = max(0, start - 1)
            piece = self.frames(first, min(len(self), stop + 1))
            yield piece, slice(start - first, stop - first), range(start, stop)

    def _fetched(self, frame: Tensor | _Absent) -> Tensor:
        if isinstance(frame, _Absent):
            return torch.empty(frame.shape, dtype=frame.dtype, device=self._device)
        return frame.to(self._device)


@dataclass(slots=True)
class GroupStatistics:
    """Mean and squared deviation of each group of channels over all frames, gathered chunk by chunk.

    Chunks are merged by Chan's formula (Chan, Golub and LeVeque, 1979), which keeps the accuracy of a
    two-pass computation. `norm` is a `GroupNorm`; chunks are `[B, C, n, H, W]` or rows `[B, C, n, W]`.
    """

    norm: Any
    count: int = 0
    mean: Tensor | None = None
    deviation: Tensor | None = None

    def add(self, chunk: Tensor) -> None:
        """Take in the next frames."""
        grouped = _wide(chunk).reshape(chunk.shape[0], self.norm.num_groups, -1)
        variance, mean = torch.var_mean(grouped, -1, correction=0)
        count = grouped.shape[-1]
        deviation = variance * count
        if self.mean is None or self.deviation is None:
            self.count, self.mean, self.deviation = count, mean, deviation
            return
        total = self.count + count
        shift = mean - self.mean
        self.deviation = self.deviation + deviation + shift * shift * (self.count * count / total)
        self.mean = self.mean + shift * (count / total)
        self.count = total

    def normalized(self, chunk: Tensor) -> Tensor:
        """What `norm` would give for these frames if it had seen the whole video."""
        assert self.mean is not None
        assert self.deviation is not None
        batch, channels = chunk.shape[:2]
        share = channels // self.norm.num_groups
        inverse = torch.rsqrt(self.deviation / self.count + self.norm.eps)
        scale = inverse.repeat_interleave(share, 1) * _wide(self.norm.weight)
        sides = (batch, channels, *(1,) * (chunk.ndim - 2))
        # The mean goes first: folding it into the offset would lose digits where it outweighs the deviation.
        centred = _wide(chunk) - self.mean.repeat_interleave(share, 1).reshape(sides)
        scaled = centred.mul_(scale.reshape(sides)).add_(_wide(self.norm.bias).reshape(1, -1, *sides[2:]))
        return scaled.to(chunk.dtype)


def replicated(window: Tensor, frames: int) -> Tensor:
    """`window` with its first frame repeated in front until there are `frames`: a causal layer's padding."""
    missing = frames - window.shape[2]
    if not missing:
        return window
    return torch.cat([window[:, :, :1].expand(-1, -1, missing, -1, -1), window], 2)


def gathered(chunks: Iterable[Tensor], norm: Any, device: torch.device) -> tuple[HostFrames, GroupStatistics]:
    """All frames parked, and what `norm` must know of them."""
    reel, statistics = HostFrames(device), GroupStatistics(norm)
    for chunk in chunks:
        statistics.add(chunk)
        reel.append(chunk)
        del chunk
    return reel, statistics


def _wide(tensor: Tensor) -> Tensor:
    """Half precision is summed in single, as torch's own norms do."""
    return tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor


def temporal_block(
    chunks: Iterable[Tensor], block: Any, mixer: Any, device: torch.device, size: int
) -> Iterator[Tensor]:
    """Run diffusers' `TemporalResnetBlock` and the `AlphaBlender` after it over a video given in chunks.

    Three sweeps: the first norm's statistics; first norm and convolution with the second norm's statistics;
    the rest. Only the last one's chunks are handed on, so the next layers run within it.
    """
    inputs, hidden = HostFrames(device), HostFrames(device)
    first, second = GroupStatistics(block.norm1), GroupStatistics(block.norm2)
    for chunk in chunks:
        first.add(chunk)
        inputs.append(chunk)
        del chunk
    for window, inner, _ in inputs.windows(size):
        convolved = block.conv1(block.nonlinearity(first.normalized(window)))[:, :, inner]
        second.add(convolved)
        hidden.append(convolved)
        del window, convolved
    for window, inner, where in hidden.windows(size):
        mixed = block.conv2(block.dropout(block.nonlinearity(second.normalized(window))))[:, :, inner]
        spatial = inputs.frames(where.start, where.stop)
        yield mixer(x_spatial=spatial, x_temporal=mixed + spatial, image_only_indicator=None)
        del window, mixed, spatial
