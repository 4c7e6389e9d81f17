"""An out-of-memory at any operation of torch, on a device that has memory enough."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode


class FailingOperation(TorchDispatchMode):
    """Within the block, the operation number `at` (from 0) fails as an allocation does; `seen` counts them.

    With `times`, so many operations fail, each `every` operations after the one before.
    """

    def __init__(self, at: int | None = None, *, times: int = 1, every: int = 1) -> None:
        super().__init__()
        self.seen = self.failed = 0
        self._due = set() if at is None else {at + every * index for index in range(times)}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        number = self.seen
        self.seen += 1
        if number in self._due:
            self.failed += 1
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 MiB")
        return func(*args, **(kwargs or {}))
