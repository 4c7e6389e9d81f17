"""Temporal windows over a stream: which frames a convolution may emit now, and which it must keep.

Owns the arithmetic of one temporal layer that sees its input in pieces: replicate padding at both ends of the
*whole* stream, kernel and stride in time, and a bound on how many frames leave at once. Knows tensors `[B, C,
T, H, W]` and numbers, nothing of modules or VAE families. All values are immutable: a step that fails leaves
the old state valid.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Kernel(NamedTuple):
    """Extent of a temporal layer: kernel size, stride, and replicated frames before the first and after the
    last."""

    size: int
    stride: int
    left: int
    right: int

    @classmethod
    def replicate(cls, size: int, stride: int, *, causal: bool) -> Kernel:
        """Padding that keeps the length: all of it before the first frame if causal, else half on either
        side."""
        if causal:
            return cls(size, stride, size - 1, 0)
        return cls(size, stride, (size - 1) // 2, (size - 1) // 2)


class Held(NamedTuple):
    """State of one temporal layer between steps.

    `frames` are the newest input frames that later windows still need (padding included). `emitted` counts
    the windows that have left, `backlog` those that are complete but were held back by the limit; `ended`
    says that the stream's last frame has been received.
    """

    frames: Tensor | None = None
    emitted: int = 0
    backlog: int = 0
    ended: bool = False

    @property
    def finished(self) -> bool:
        """Whether nothing will be emitted any more."""
        return self.ended and self.backlog == 0

    def idle(self, stream_ended: bool) -> bool:
        """Whether an empty input would make this layer emit nothing and change nothing."""
        return self.frames is None or (self.backlog == 0 and self.ended == stream_ended)


class Pushed(NamedTuple):
    """What one push gave: input frames of the complete windows (None: none yet), their count, the new
    state."""

    window: Tensor | None
    windows: int
    held: Held


def push(held: Held, chunk: Tensor, kernel: Kernel, *, ended: bool, limit: int) -> Pushed:
    """Append `chunk` (may hold no frame) and take at most `limit` complete windows.

    A convolution without temporal padding over `window` gives exactly `count` output frames.
    """
    frames = _joined(held, chunk, kernel, ended=ended)
    if frames is None:
        return Pushed(None, 0, held._replace(ended=ended))
    complete = max(0, (frames.shape[2] - kernel.size) // kernel.stride + 1)
    count = min(complete, max(1, limit))
    end = kernel.stride * (count - 1) + kernel.size
    joined_here = frames is not chunk and frames is not held.frames
    # A view would hold on to its base; what is the caller's, or the old state, is never handed out itself.
    whole = frames if joined_here and end == frames.shape[2] else frames[:, :, :end]
    window = whole if count else None
    rest = frames[:, :, kernel.stride * count :]
    if window is not None or frames is chunk:
        rest = rest.clone()  # a view would keep the whole chunk alive until the next step
    return Pushed(window, count, Held(rest, held.emitted + count, complete - count, ended))


def _joined(held: Held, chunk: Tensor, kernel: Kernel, *, ended: bool) -> Tensor | None:
    """Held frames, left padding (once), the chunk, right padding (once), in one allocation."""
    pieces: list[Tensor] = []
    if held.frames is not None:
        pieces.append(held.frames)
    elif chunk.shape[2] and kernel.left:
        pieces.append(chunk[:, :, :1].expand(-1, -1, kernel.left, -1, -1))
    if chunk.shape[2]:
        pieces.append(chunk)
    if ended and not held.ended and kernel.right and pieces:
        pieces.append(pieces[-1][:, :, -1:].expand(-1, -1, kernel.right, -1, -1))
    if len(pieces) <= 1:
        return pieces[0] if pieces else None
    return torch.cat(pieces, 2)


def add_delayed(waiting: Tensor | None, hidden: Tensor, branch: Tensor) -> tuple[Tensor, Tensor]:
    """Add a residual branch to a main branch whose windows complete later: sum, and the branch's frames that
    wait on.

    The oldest frames of `waiting` followed by `branch` go to `hidden`, **in place**: it must belong to the
    caller alone.
    """
    count = hidden.shape[2]
    old = 0 if waiting is None else min(count, waiting.shape[2])
    new = count - old
    if (
        hidden.dtype != branch.dtype
    ):  # only under autocast, where the sum is wider than the convolution's output
        hidden = hidden.to(torch.promote_types(hidden.dtype, branch.dtype))
    if waiting is not None and old:
        hidden[:, :, :old].add_(waiting[:, :, :old])
    if new:
        hidden[:, :, old:].add_(branch[:, :, :new])
    if waiting is None or old == waiting.shape[2]:
        return hidden, branch[:, :, new:].clone()
    return hidden, torch.cat([waiting[:, :, old:], branch[:, :, new:]], 2)
