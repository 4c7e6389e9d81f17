"""Tensors that outlive their use: a network's own code holds what it gave a layer until that layer returns,
though the layer has long copied it (into a window, behind padding) or is the last to look at it.

Owns emptying them. Knows tensors, neither layers nor families.
"""

from __future__ import annotations

import torch
from torch import Tensor


def release_early(tensor: Tensor) -> None:
    """Empty a tensor that others still hold but nobody will look at: it gets another storage, of no bytes.

    Views of it, and what it is a view of, keep theirs. A tensor made in inference mode cannot be changed
    outside of it, and stays.
    """
    if torch.is_inference_mode_enabled() or not tensor.is_inference():
        tensor.set_()  # type: ignore[call-overload]


class EarlyRelease:
    """The newest tensor of which the layer that gets it next may leave nothing."""

    def __init__(self) -> None:
        self._offered: Tensor | None = None

    def offer(self, tensor: Tensor) -> Tensor:
        """`tensor`, which nobody looks at after the layer that gets it next."""
        self._offered = tensor
        return tensor

    def spend(self, tensor: Tensor) -> None:
        """The layer goes on with a copy of `tensor`: empty it, if it was offered."""
        if tensor is self._offered:
            release_early(tensor)
        self.withdraw()

    def withdraw(self) -> None:
        """What was offered and not spent is not held here either."""
        self._offered = None
