"""Delayed residual adds: the two branches of a residual block emit matching frames at different times.

A block computes `convolutions(x) + shortcut(x)`. In a stream, a non-causal convolution needs frames of the
next chunk and emits fewer than it received, while the shortcut emits all. The two cannot be added directly.
The shortcut's frames therefore wait in a queue until the main branch emits the frames they belong to.

The block's own, unmodified `forward` does the addition. It gets its input as a `ResidualBranch`, a tensor
subclass: any operation on it gives an ordinary tensor, except addition, which calls `merge` and so goes
through the queue (`window.add_delayed`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

# merge(hidden, branch) returns the sum of the frames that are ready.
Merge = Callable[[Tensor, Tensor], Tensor]

_ADD = {Tensor.add, Tensor.__add__, Tensor.__radd__, torch.add}


class ResidualBranch(Tensor):
    """The residual branch of a block: `hidden + branch` is `branch.merge(hidden, branch)`."""

    merge: Merge

    @staticmethod
    def of(frames: Tensor, merge: Merge) -> ResidualBranch:
        """Return `frames` as a branch with the same storage."""
        branch = frames.as_subclass(ResidualBranch)
        branch.merge = merge
        return branch

    @classmethod
    def __torch_function__(
        cls, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Give every operation an ordinary tensor, except addition and `Tensor.to`."""
        with torch._C.DisableTorchFunctionSubclass():
            if func in _ADD:
                first, second = args
                hidden, branch = (first, second) if isinstance(second, ResidualBranch) else (second, first)
                return branch.merge(hidden, branch.as_subclass(Tensor))
            result = func(*args, **(kwargs or {}))
            if func is Tensor.to:  # offload hooks move arguments and results, which must remain branches
                return ResidualBranch.of(result, args[0].merge)
            return result
