"""The tick: one chunk's way through a network, and what a family's rules do with it.

Owns the working copy of the stream's state and the verbs that rules are written in (window, convolve, delay,
skip), so that a family's file needs no torch of its own. Knows layers, not families; a tick that fails is
simply dropped.
"""

from __future__ import annotations

import functools
from collections.abc import Hashable, MutableMapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from adaptive.stream.engines.stages import Marks
from adaptive.stream.layers.early_release import EarlyRelease
from adaptive.stream.layers.residual import Branch
from adaptive.stream.layers.window import Held, Kernel, Pushed, add_delayed, push

_NEW = Held()


@dataclass(slots=True)
class Tick:
    """State of the step being made.

    `limit` (frames a layer may emit) and `ended` (the frames now in flight reach the stream's end) describe
    the stream at the layer being run: rules of resampling layers scale the limit, temporal layers set
    `ended`. `may_skip`: blocks with nothing to do may be left out; `touch`: convolutions with nothing to do
    are still called, for their hooks.
    """

    cells: MutableMapping[Hashable, Any]
    limit: int
    ended: bool
    sink: nn.Module
    may_skip: bool
    touch: bool
    no_output: bool = False
    spending: EarlyRelease = field(default_factory=EarlyRelease)
    _prepared: dict[nn.Module, Tensor | None] = field(default_factory=dict)
    _shortcuts: dict[nn.Module, nn.Module] = field(default_factory=dict)

    def marks(self) -> Marks:
        """Where the tick stands, for one that goes on from here."""
        return Marks(self.limit, self.ended)

    def restore(self, marks: Marks) -> None:
        """Go on from there."""
        self.limit, self.ended = marks.limit, marks.ended

    def push(self, layer: nn.Module, frames: Tensor, kernel: Kernel) -> Pushed:
        """Add frames to the layer's window and take what is complete, within the limit."""
        self.limit = -(-self.limit // kernel.stride)
        pushed = push(self.cells.get(layer, _NEW), frames, kernel, ended=self.ended, limit=self.limit)
        self.cells[layer] = pushed.held
        self.ended = pushed.held.finished
        return pushed

    def push_centred(
        self, layer: nn.Module, frames: Tensor, size: int, *, causal: bool
    ) -> tuple[Pushed, Tensor | None]:
        """`push` for a layer of stride 1, and the input frame in the middle of each window that is taken."""
        kernel = Kernel.replicate(size, 1, causal=causal)
        pushed = self.push(layer, frames, kernel)
        if pushed.window is None:
            return pushed, None
        return pushed, pushed.window[:, :, kernel.left : kernel.left + pushed.windows]

    def push_causal(
        self, layer: nn.Module, frames: Tensor, size: int, *, stride: int = 1, left: int | None = None
    ) -> Tensor:
        """Window of a causal layer, which holds nothing back: one output frame for every `stride` input
        frames.

        `left`: frames replicated before the first one, `size - 1` unless the layer pads less.
        """
        kernel = Kernel(size, stride, size - 1 if left is None else left, 0)
        held = self.cells.get(layer, _NEW)
        pushed = push(held, frames, kernel, ended=self.ended, limit=frames.shape[2])
        assert pushed.window is not None, "a causal stream has no empty chunks"
        self.cells[layer] = pushed.held
        self.spending.spend(frames)
        return pushed.window

    def first(self, layer: nn.Module) -> bool:
        """Whether `layer` has not been asked in this stream before."""
        seen: bool = self.cells.get(layer, False)
        self.cells[layer] = True
        return not seen

    def remember(self, layer: nn.Module, *tensors: Tensor, dim: int) -> tuple[Tensor, ...]:
        """Each of `tensors` behind what the layer was given in this stream before, along `dim`: for attention
        that looks back, whose keys and values must stay.
        """
        past: tuple[tuple[Tensor, ...], ...] = self.cells.get(layer, ())
        self.cells[layer] = (*past, tensors)
        if not past:
            return tensors
        return tuple(torch.cat(pieces, dim) for pieces in zip(*past, tensors, strict=True))

    def groups(self, layer: nn.Module, frames: Tensor, size: int) -> Tensor:
        """Frames in whole groups of `size`, the stream's first frames repeated so that its first group is
        full.

        What does not fill a group waits for the next tick.
        """
        held: Tensor | None = self.cells.get(layer)
        lead = frames[:, :, : size - 1] if held is None else held
        joined = torch.cat([lead, frames], 2) if lead.shape[2] else frames
        whole = joined.shape[2] // size * size
        if held is not None or frames.shape[2]:
            self.cells[layer] = joined[:, :, whole:].clone()
        return joined[:, :, :whole]

    def prepare(self, layer: nn.Module, window: Tensor | None) -> None:
        """Give `layer` its window from outside: its next `convolve` in this tick uses it as it is."""
        self._prepared[layer] = window

    def convolve(self, layer: nn.Module, frames: Tensor, conv: Any, *, causal: bool) -> Tensor:
        """Temporal convolution with replicate padding: `conv`, which pads in space only, over complete
        windows."""
        if layer in self._prepared:
            window = self._prepared.pop(layer)
        else:
            kernel = Kernel.replicate(conv.kernel_size[0], conv.stride[0], causal=causal)
            window = self.push(layer, frames, kernel).window
        if window is not None:
            self.spending.spend(frames)
            convolved: Tensor = conv(self.spending.offer(window))
            self.spending.withdraw()
            return convolved
        if layer is self.sink:
            self.no_output = (
                True  # the code behind the sink cannot take an empty tensor: it gets a frame to drop
            )
        return self.no_frames(frames, conv, count=1 if layer is self.sink else 0)

    def no_frames(self, frames: Tensor, conv: Any, *, count: int = 0) -> Tensor:
        """What `conv`, with nothing to do, gives in this tick: an empty tensor of its output's sides."""
        if self.touch:
            conv(frames.new_zeros(1, conv.in_channels, *conv.kernel_size))
        return _blank_output(frames, conv, count)

    def idle(self, frames: Tensor, layers: tuple[nn.Module, ...]) -> bool:
        """Whether a block of these temporal layers would turn an empty input into an empty output."""
        if not self.may_skip or frames.shape[2]:
            return False
        return all(self.cells.get(layer, _NEW).idle(self.ended) for layer in layers)

    def delayed(self, block: nn.Module, frames: Tensor) -> Branch:
        """`frames` as the residual branch of `block`: added to the main branch when its frames are ready."""
        return Branch.of(frames, functools.partial(self._merge, block))

    def expect_branch(self, shortcut: nn.Module, block: nn.Module) -> None:
        """The output of `shortcut` is the residual branch of `block`."""
        self._shortcuts[shortcut] = block

    def as_branch(self, shortcut: nn.Module, frames: Tensor) -> Tensor:
        """`frames`, as a residual branch where one is expected of `shortcut`."""
        block = self._shortcuts.get(shortcut)
        return frames if block is None else self.delayed(block, frames)

    def _merge(self, block: nn.Module, hidden: Tensor, branch: Tensor) -> Tensor:
        total, self.cells[block] = add_delayed(self.cells.get(block), hidden, branch)
        return total


def attend_to_past(query: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """Attention of the newest `[B, heads, n, C]` frames to all `[B, heads, N, C]` frames up to each."""
    count, total = query.shape[-2], keys.shape[-2]
    seen = query.new_ones(count, total, dtype=torch.bool).tril(total - count) if count > 1 else None
    return torch.nn.functional.scaled_dot_product_attention(query, keys, values, attn_mask=seen)


def _blank_output(inputs: Tensor, conv: Any, count: int) -> Tensor:
    """`count` output frames of `conv`, all zero."""
    sides = (
        (side + 2 * pad - size) // stride + 1
        for side, pad, size, stride in zip(
            inputs.shape[3:], conv.padding[1:], conv.kernel_size[1:], conv.stride[1:], strict=True
        )
    )
    return inputs.new_zeros(inputs.shape[0], conv.out_channels, count, *sides)
