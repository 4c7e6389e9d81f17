"""One pass of a chunk through a network, and the operations that streaming rules use on it.

A chunk carries no tag of its own. Instead, a `ChunkPass` accompanies it from layer to layer. It says how many
frames a layer may emit and whether the end of the stream has been reached, and it holds the state that each
layer keeps between chunks. A *streaming rule* is a function that runs in place of one layer's `forward`. It
is written with the methods below: append the chunk to the layer's window, convolve complete windows, delay a
residual branch, extend a key and value cache. A family's rules therefore need hardly any torch code.

Layers that treat every frame alone run unchanged. A temporal layer may receive a chunk and emit fewer frames
than it received, or none; the frames it keeps complete the windows of the next chunk. At the end of the
stream, passes with an empty chunk drain what the layers still keep.

If a pass fails, its engine discards it or rolls its writes back (see `stages`). Knows layers, not families.
"""

from __future__ import annotations

import functools
from collections.abc import Hashable, MutableMapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from adaptive.stream.engines.stages import ResumePoint
from adaptive.stream.layers.convolution import convolved_dtype
from adaptive.stream.layers.early_release import EarlyRelease
from adaptive.stream.layers.residual import ResidualBranch
from adaptive.stream.layers.window import Kernel, PushResult, WindowState, add_delayed, push

_NEW_WINDOW = WindowState()


@dataclass(slots=True)
class ChunkPass:
    """One chunk on its way through the network.

    - `layer_states` holds what each layer keeps between chunks.
    - `limit` is the number of frames that the layer that runs now may emit. Layers that resample scale it.
    - `ended`: the frames that reach that layer include the stream's last one. Temporal layers update it.
    - `sink` is the last temporal layer.
    - `may_skip_idle_blocks`: rules may skip a block that has no input and nothing left to emit.
    - `call_idle_convolutions`: rules call convolutions without input too, so that their offload hooks run.
    - `no_output` is set when the pass completes no frame.
    """

    layer_states: MutableMapping[Hashable, Any]
    limit: int
    ended: bool
    sink: nn.Module
    may_skip_idle_blocks: bool
    call_idle_convolutions: bool
    no_output: bool = False
    early_release: EarlyRelease = field(default_factory=EarlyRelease)
    _windows: dict[nn.Module, Tensor | None] = field(default_factory=dict)
    _shortcuts: dict[nn.Module, nn.Module] = field(default_factory=dict)

    def resume_point(self) -> ResumePoint:
        """Return what a later pass needs to resume after the layer that ran last."""
        return ResumePoint(self.limit, self.ended)

    def restore(self, resume_point: ResumePoint) -> None:
        """Resume at `resume_point`."""
        self.limit, self.ended = resume_point.limit, resume_point.ended

    def push(self, layer: nn.Module, frames: Tensor, kernel: Kernel) -> PushResult:
        """Append `frames` to the layer's window state and return its complete windows, at most `limit`."""
        self.limit = -(-self.limit // kernel.stride)
        state = self.layer_states.get(layer, _NEW_WINDOW)
        pushed = push(state, frames, kernel, ended=self.ended, limit=self.limit)
        self.layer_states[layer] = pushed.state
        self.ended = pushed.state.finished
        return pushed

    def push_centred(
        self, layer: nn.Module, frames: Tensor, size: int, *, causal: bool
    ) -> tuple[PushResult, Tensor | None]:
        """`push` for a layer of stride 1. Also returns the input frame at the centre of each window."""
        kernel = Kernel.replicate(size, 1, causal=causal)
        pushed = self.push(layer, frames, kernel)
        if pushed.window is None:
            return pushed, None
        return pushed, pushed.window[:, :, kernel.left : kernel.left + pushed.windows]

    def push_causal(
        self, layer: nn.Module, frames: Tensor, size: int, *, stride: int = 1, left: int | None = None
    ) -> Tensor:
        """Return the window of a causal layer, which emits one frame for every `stride` input frames at once.

        `left` is the number of copies of the first frame before it: `size - 1` unless the layer pads less.
        """
        kernel = Kernel(size, stride, size - 1 if left is None else left, 0)
        state = self.layer_states.get(layer, _NEW_WINDOW)
        pushed = push(state, frames, kernel, ended=self.ended, limit=frames.shape[2])
        assert pushed.window is not None, "a causal stream has no empty chunks"
        self.layer_states[layer] = pushed.state
        self.early_release.release_if_marked(frames)
        return pushed.window

    def first(self, layer: nn.Module) -> bool:
        """Whether this is the layer's first call in this stream."""
        seen: bool = self.layer_states.get(layer, False)
        self.layer_states[layer] = True
        return not seen

    def extend_cache(self, layer: nn.Module, *tensors: Tensor, dim: int) -> tuple[Tensor, ...]:
        """Append `tensors` to the layer's cache and return each joined with all earlier ones along `dim`.

        For attention to earlier frames, whose keys and values must be kept: the cache grows with the stream.
        """
        past: tuple[tuple[Tensor, ...], ...] = self.layer_states.get(layer, ())
        self.layer_states[layer] = (*past, tensors)
        if not past:
            return tensors
        return tuple(torch.cat(pieces, dim) for pieces in zip(*past, tensors, strict=True))

    def groups(self, layer: nn.Module, frames: Tensor, size: int) -> Tensor:
        """Return the frames that form whole groups of `size`; the rest waits for the next chunk.

        The stream's first `size - 1` frames are repeated in front, so that its first frame completes a group.
        """
        waiting: Tensor | None = self.layer_states.get(layer)
        lead = frames[:, :, : size - 1] if waiting is None else waiting
        joined = torch.cat([lead, frames], 2) if lead.shape[2] else frames
        whole = joined.shape[2] // size * size
        if waiting is not None or frames.shape[2]:
            self.layer_states[layer] = joined[:, :, whole:].clone()
        return joined[:, :, :whole]

    def set_window(self, layer: nn.Module, window: Tensor | None) -> None:
        """Make the next `convolve` of `layer` in this pass use `window` instead of pushing frames itself."""
        self._windows[layer] = window

    def convolve(self, layer: nn.Module, frames: Tensor, conv: Any, *, causal: bool) -> Tensor:
        """Return a temporal convolution with replicate padding over the windows that are complete.

        `conv` pads in space only. Without a complete window the result has no frames.
        """
        if layer in self._windows:
            window = self._windows.pop(layer)
        else:
            kernel = Kernel.replicate(conv.kernel_size[0], conv.stride[0], causal=causal)
            window = self.push(layer, frames, kernel).window
        if window is not None:
            self.early_release.release_if_marked(frames)
            convolved: Tensor = conv(self.early_release.mark_last_use(window))
            self.early_release.forget()
            return convolved
        if layer is self.sink:
            # The code after the sink cannot take an empty tensor: it gets one frame, which the engine drops.
            self.no_output = True
        return self.empty_output(frames, conv, count=1 if layer is self.sink else 0)

    def empty_output(self, frames: Tensor, conv: Any, *, count: int = 0) -> Tensor:
        """Return `count` frames of zeros, with the channels, height and width of the output of `conv`."""
        if self.call_idle_convolutions:
            conv(frames.new_zeros(1, conv.in_channels, *conv.kernel_size))
        return _blank_output(frames, conv, count)

    def is_idle(self, frames: Tensor, layers: tuple[nn.Module, ...]) -> bool:
        """Whether a block with these temporal layers may be skipped: no input, and nothing left to emit."""
        if not self.may_skip_idle_blocks or frames.shape[2]:
            return False
        return all(self.layer_states.get(layer, _NEW_WINDOW).is_idle(self.ended) for layer in layers)

    def delayed_branch(self, block: nn.Module, frames: Tensor) -> ResidualBranch:
        """Return `frames` as the residual branch of `block`.

        Adding it to the main branch adds each of its frames once the main branch emits the matching frame.
        """
        return ResidualBranch.of(frames, functools.partial(self._add_delayed, block))

    def expect_branch(self, shortcut: nn.Module, block: nn.Module) -> None:
        """Declare that the output of the layer `shortcut` is the residual branch of `block`."""
        self._shortcuts[shortcut] = block

    def as_branch(self, shortcut: nn.Module, frames: Tensor) -> Tensor:
        """Return `frames`, as a residual branch if `expect_branch` declared one for `shortcut`."""
        block = self._shortcuts.get(shortcut)
        return frames if block is None else self.delayed_branch(block, frames)

    def _add_delayed(self, block: nn.Module, hidden: Tensor, branch: Tensor) -> Tensor:
        total, self.layer_states[block] = add_delayed(self.layer_states.get(block), hidden, branch)
        return total


def attend_to_past(query: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """Return causal attention of the newest frames over all frames.

    `query` is `[B, heads, n, C]`, the newest n of the N frames in `keys` and `values`, `[B, heads, N, C]`.
    """
    count, total = query.shape[-2], keys.shape[-2]
    seen = query.new_ones(count, total, dtype=torch.bool).tril(total - count) if count > 1 else None
    return torch.nn.functional.scaled_dot_product_attention(query, keys, values, attn_mask=seen)


def _blank_output(inputs: Tensor, conv: Any, count: int) -> Tensor:
    """Return `count` output frames of `conv`, all zero, in the size and dtype that it gives for `inputs`."""
    sides = (
        (side + 2 * pad - size) // stride + 1
        for side, pad, size, stride in zip(
            inputs.shape[3:], conv.padding[1:], conv.kernel_size[1:], conv.stride[1:], strict=True
        )
    )
    shape = inputs.shape[0], conv.out_channels, count, *sides
    return inputs.new_zeros(shape, dtype=convolved_dtype(inputs))
