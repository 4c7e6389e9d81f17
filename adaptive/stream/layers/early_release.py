"""Early release of a layer's input, to lower the peak memory.

The code of a network keeps a reference to a layer's input until the layer returns. The layer may have copied
it long before (into a window, into a padded tensor), or may be the last to use it. Here such a tensor is
emptied although references to it exist. Knows tensors, neither layers nor families.
"""

from __future__ import annotations

import torch
from torch import Tensor


def release_early(tensor: Tensor) -> None:
    """Free the memory of a tensor that is referenced but not used again, by giving it an empty storage.

    Views of it, and a tensor that it is a view of, keep their storage. A tensor made in inference mode cannot
    be changed outside of it; then this does nothing.
    """
    if torch.is_inference_mode_enabled() or not tensor.is_inference():
        tensor.set_()  # type: ignore[call-overload]


class EarlyRelease:
    """Remembers the most recent tensor that only the next layer uses, and releases it when that layer asks.

    The code that makes the tensor marks it. The layer that receives it releases it once it has a copy.
    """

    def __init__(self, *, allowed: bool = True) -> None:
        """`allowed`: nobody but the network's own code may keep a reference to a marked tensor."""
        self.allowed = allowed
        self._marked: Tensor | None = None

    def mark_last_use(self, tensor: Tensor) -> Tensor:
        """Declare that only the next layer uses `tensor`; return it."""
        if self.allowed:
            self._marked = tensor
        return tensor

    def release_if_marked(self, tensor: Tensor) -> None:
        """Release `tensor` if it is the marked one. The caller has a copy and does not use it again."""
        if tensor is self._marked:
            release_early(tensor)
        self.forget()

    def forget(self) -> None:
        """Drop the reference to the marked tensor without releasing it early."""
        self._marked = None
