"""Temporal windows over a stream: which frames a convolution may emit now, and which it must keep.

A temporal convolution of kernel size k needs a *window* of k consecutive input frames for each output frame.
It sees its input in chunks. `push` appends a chunk to the frames kept from before, returns the input of all
windows that are complete, and keeps the frames that later windows need: the last k - 1 for stride 1. A
convolution without temporal padding over the returned frames gives the same output frames as a convolution of
the whole video.

Replicate padding belongs to the ends of the *whole* stream, so it is added once, before the first frame and
after the last. A causal layer pads in front only and emits a frame for each one it receives. A non-causal
layer waits for later frames and therefore lags behind its input. A limit bounds how many frames leave in one
step, and with them the memory of the layers after this one.

Knows tensors `[B, C, T, H, W]` and numbers, neither modules nor VAE families. All values are immutable: after
a step that fails, the old state is still valid.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Kernel(NamedTuple):
    """Extent of a temporal layer in frames.

    `size` is the kernel size. `left` and `right` are the copies of the first frame before it and of the last
    frame after it.
    """

    size: int
    stride: int
    left: int
    right: int

    @classmethod
    def replicate(cls, size: int, stride: int, *, causal: bool) -> Kernel:
        """Return a kernel whose padding keeps the length: in front if causal, else half on either side."""
        if causal:
            return cls(size, stride, size - 1, 0)
        return cls(size, stride, (size - 1) // 2, (size - 1) // 2)


class WindowState(NamedTuple):
    """State of one temporal layer between chunks.

    - `frames`: the last input frames, padding included, that later windows need.
    - `emitted`: the number of windows returned so far.
    - `backlog`: the number of complete windows that the limit kept back.
    - `ended`: whether the stream's last frame has been received.
    """

    frames: Tensor | None = None
    emitted: int = 0
    backlog: int = 0
    ended: bool = False

    @property
    def finished(self) -> bool:
        """Whether every window of the stream has been returned."""
        return self.ended and self.backlog == 0

    def is_idle(self, stream_ended: bool) -> bool:
        """Whether an empty chunk would make this layer return nothing and change nothing."""
        return self.frames is None or (self.backlog == 0 and self.ended == stream_ended)


class PushResult(NamedTuple):
    """Result of `push`.

    `window`: the input frames of the returned windows, None if no window is complete. `windows`: their
    number. `state`: the layer's new state.
    """

    window: Tensor | None
    windows: int
    state: WindowState


def push(state: WindowState, chunk: Tensor, kernel: Kernel, *, ended: bool, limit: int) -> PushResult:
    """Append `chunk` (which may be empty) and return at most `limit` complete windows.

    `ended` says that the stream's last frame is in `chunk` or before it. A convolution without temporal
    padding over the result's `window` gives exactly `windows` output frames.
    """
    frames = _joined(state, chunk, kernel, ended=ended)
    if frames is None:
        return PushResult(None, 0, state._replace(ended=ended))
    complete = max(0, (frames.shape[2] - kernel.size) // kernel.stride + 1)
    count = min(complete, max(1, limit))
    end = kernel.stride * (count - 1) + kernel.size
    joined_here = frames is not chunk and frames is not state.frames
    # The window may be released early. A view cannot free its base, so a tensor made here is returned itself
    # if it is all window. The caller's chunk and the old state are returned as views, which protects them.
    whole = frames if joined_here and end == frames.shape[2] else frames[:, :, :end]
    window = whole if count else None
    rest = frames[:, :, kernel.stride * count :]
    if window is not None or frames is chunk:
        rest = rest.clone()  # a view would keep the whole chunk alive until the next step
    return PushResult(window, count, WindowState(rest, state.emitted + count, complete - count, ended))


def _joined(state: WindowState, chunk: Tensor, kernel: Kernel, *, ended: bool) -> Tensor | None:
    """Return kept frames, left padding (once), the chunk and right padding (once), in one allocation.

    None if there are no frames.
    """
    pieces: list[Tensor] = []
    if state.frames is not None:
        pieces.append(state.frames)
    elif chunk.shape[2] and kernel.left:
        pieces.append(chunk[:, :, :1].expand(-1, -1, kernel.left, -1, -1))
    if chunk.shape[2]:
        pieces.append(chunk)
    if ended and not state.ended and kernel.right and pieces:
        pieces.append(pieces[-1][:, :, -1:].expand(-1, -1, kernel.right, -1, -1))
    if len(pieces) <= 1:
        return pieces[0] if pieces else None
    return torch.cat(pieces, 2)


def add_delayed(waiting: Tensor | None, hidden: Tensor, branch: Tensor) -> tuple[Tensor, Tensor]:
    """Add a residual branch to a main branch that emits matching frames later.

    - `hidden`: frames of the main branch. They change **in place**, so they must belong to the caller alone.
    - `waiting`: earlier frames of the residual branch that are not added yet.
    - `branch`: its new frames.

    Returns the sum of `hidden` and the oldest residual frames, and the residual frames that still wait.
    """
    count = hidden.shape[2]
    old = 0 if waiting is None else min(count, waiting.shape[2])
    new = count - old
    if hidden.dtype != branch.dtype:  # only under autocast: the sum is wider than the convolution's output
        hidden = hidden.to(torch.promote_types(hidden.dtype, branch.dtype))
    if waiting is not None and old:
        hidden[:, :, :old].add_(waiting[:, :, :old])
    if new:
        hidden[:, :, old:].add_(branch[:, :, :new])
    if waiting is None or old == waiting.shape[2]:
        return hidden, branch[:, :, new:].clone()
    return hidden, torch.cat([waiting[:, :, old:], branch[:, :, new:]], 2)
