"""Layer sweeps: exact decoding in little device memory where norms span all frames of a video.

A norm over time needs every frame before it can normalise any, so no chunk can go through the whole network.
Instead each layer runs over the whole video, some frames at a time, before the next layer begins. The
activations between two layers are parked in host memory. A norm takes two sweeps: one gathers its statistics,
the other applies them.

Owns the parked frames (`HostFrames`) and the statistics (`GroupStatistics`). The family decides which layers
run in which order.
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
class ParkedFrames:
    """Counts the parked frames of a trace on meta tensors.

    `same_memory`: host and device memory are the same, as on a CPU, so the device's own accounting sees the
    parked frames. Otherwise `live_bytes` counts them here and `peak_bytes` is their maximum.
    """

    same_memory: bool
    live_bytes: int = 0
    peak_bytes: int = 0

    @contextmanager
    def active(self) -> Iterator[None]:
        """Within the context, count frames of meta tensors that are parked."""
        token = _PARKING.set(self)
        try:
            yield
        finally:
            _PARKING.reset(token)

    def add(self, size_bytes: int) -> None:
        """Count `size_bytes` more, or fewer if negative."""
        self.live_bytes += size_bytes
        self.peak_bytes = max(self.peak_bytes, self.live_bytes)


_PARKING: ContextVar[ParkedFrames | None] = ContextVar("parking", default=None)


class _MetaFrame:
    """A parked frame of a meta tensor: its shape and dtype, without memory on the device."""

    def __init__(self, frame: Tensor, parking: ParkedFrames | None) -> None:
        self.shape = frame.shape
        self.dtype = frame.dtype
        if parking is not None:
            parking.add(frame.nbytes)
            weakref.finalize(self, parking.add, -frame.nbytes)


class HostFrames:
    """Frames `[B, C, H, W]` of one video in host memory, returned as `[B, C, n, H, W]` on `device`."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._frames: list[Tensor | _MetaFrame] = []

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
                self._frames.append(_MetaFrame(frame, parking))

    def frames(self, start: int, stop: int) -> Tensor:
        """Return frames `start` to `stop` on the device."""
        return torch.stack([self._on_device(frame) for frame in self._frames[start:stop]], 2)

    def take(self, count: int) -> Tensor:
        """Remove the first `count` frames and return them on the device."""
        frames = self.frames(0, count)
        del self._frames[:count]
        return frames

    def pieces(self, size: int) -> Iterator[Tensor]:
        """Yield all frames, `size` at a time."""
        for start in range(0, len(self), size):
            yield self.frames(start, start + size)

    def drained(self, size: int) -> Iterator[Tensor]:
        """Yield all frames, `size` at a time, and remove them."""
        while self._frames:
            yield self.take(size)

    def windows(self, size: int) -> Iterator[tuple[Tensor, slice, range]]:
        """Yield all frames, `size` at a time, each piece with one neighbouring frame on either side.

        The first piece has none before it, the last none after it. Each item is the piece with its
        neighbours, the slice of it without them, and the piece's frame numbers.
        """
        for start in range(0, len(self), size):
            stop = min(len(self), start + size)
            first = max(0, start - 1)
            piece = self.frames(first, min(len(self), stop + 1))
            yield piece, slice(start - first, stop - first), range(start, stop)

    def _on_device(self, frame: Tensor | _MetaFrame) -> Tensor:
        if isinstance(frame, _MetaFrame):
            return torch.empty(frame.shape, dtype=frame.dtype, device=self._device)
        return frame.to(self._device)


@dataclass(slots=True)
class GroupStatistics:
    """Mean and sum of squared deviations of each group of channels over all frames, gathered chunk by chunk.

    Chunks are merged by Chan's formula (Chan, Golub and LeVeque, 1979), which keeps the accuracy of a
    two-pass computation. `norm` is a `GroupNorm`; chunks are `[B, C, n, H, W]` or rows `[B, C, n, W]`.
    """

    norm: Any
    count: int = 0
    mean: Tensor | None = None
    deviation: Tensor | None = None

    def add(self, chunk: Tensor) -> None:
        """Include the next frames."""
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
        """Return what `norm` would give for these frames if it had seen the whole video."""
        assert self.mean is not None
        assert self.deviation is not None
        batch, channels = chunk.shape[:2]
        share = channels // self.norm.num_groups
        inverse = torch.rsqrt(self.deviation / self.count + self.norm.eps)
        scale = inverse.repeat_interleave(share, 1) * _wide(self.norm.weight)
        sides = (batch, channels, *(1,) * (chunk.ndim - 2))
        # Subtract the mean first: folding it into the offset loses digits if it is much larger than the
        # deviation.
        centred = _wide(chunk) - self.mean.repeat_interleave(share, 1).reshape(sides)
        scaled = centred.mul_(scale.reshape(sides)).add_(_wide(self.norm.bias).reshape(1, -1, *sides[2:]))
        return scaled.to(chunk.dtype)


def replicated(window: Tensor, frames: int) -> Tensor:
    """Return `window` as a causal layer pads it: first frame repeated in front, to a length of `frames`."""
    missing = frames - window.shape[2]
    if not missing:
        return window
    return torch.cat([window[:, :, :1].expand(-1, -1, missing, -1, -1), window], 2)


def park_with_statistics(
    chunks: Iterable[Tensor], norm: Any, device: torch.device
) -> tuple[HostFrames, GroupStatistics]:
    """Park all frames; return them with the statistics that `norm` needs."""
    parked, statistics = HostFrames(device), GroupStatistics(norm)
    for chunk in chunks:
        statistics.add(chunk)
        parked.append(chunk)
        del chunk
    return parked, statistics


def _wide(tensor: Tensor) -> Tensor:
    """Return half precision as single precision: sums use it, as in torch's own norms."""
    return tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor


def temporal_block(
    chunks: Iterable[Tensor], block: Any, mixer: Any, device: torch.device, size: int
) -> Iterator[Tensor]:
    """Run diffusers' `TemporalResnetBlock` and the `AlphaBlender` after it over a video given in chunks.

    Takes three sweeps: the first norm's statistics; first norm and convolution, with the second norm's
    statistics; the rest. The last sweep yields its chunks, so per-frame layers after the block run within it.
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
    for window, inner, numbers in hidden.windows(size):
        mixed = block.conv2(block.dropout(block.nonlinearity(second.normalized(window))))[:, :, inner]
        spatial = inputs.frames(numbers.start, numbers.stop)
        yield mixer(x_spatial=spatial, x_temporal=mixed + spatial, image_only_indicator=None)
        del window, mixed, spatial
