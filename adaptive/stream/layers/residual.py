"""Residual branches whose two sides finish at different times.

Owns the tensor subclass that stands for a block's input inside the block's own, unmodified `forward`: any
operation on it gives an ordinary tensor, except the final addition, which goes through a queue instead.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

Merge = Callable[[Tensor, Tensor], Tensor]  # merge(hidden, branch) -> sum of the frames that are ready

_ADD = {Tensor.add, Tensor.__add__, Tensor.__radd__, torch.add}


class Branch(Tensor):
    """A residual branch: the sum with it is `merge(hidden, branch)`."""

    merge: Merge

    @staticmethod
    def of(frames: Tensor, merge: Merge) -> Branch:
        """`frames` as a branch; the storage is shared."""
        branch = frames.as_subclass(Branch)
        branch.merge = merge
        return branch

    @classmethod
    def __torch_function__(
        cls, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Every operation but the sum and a change of device sees, and gives, an ordinary tensor."""
        with torch._C.DisableTorchFunctionSubclass():
            if func in _ADD:
                first, second = args
                hidden, branch = (first, second) if isinstance(second, Branch) else (second, first)
                return branch.merge(hidden, branch.as_subclass(Tensor))
            result = func(*args, **(kwargs or {}))
            if func is Tensor.to:  # offloading hooks move arguments and results
                return Branch.of(result, args[0].merge)
            return result
