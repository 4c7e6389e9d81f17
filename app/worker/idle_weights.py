"""Weights that have nothing to do while a video is decoded: off the device and back on it.

Owns the moving and what it takes. Whether it is worth it, `adaptive.planning.planner` decides; when,
`app.worker.decoding`.
"""

import time
from collections.abc import Iterable

import torch

from adaptive.device.host import read_host
from adaptive.errors import DoesNotFit

# A first guess, PCIe 3 from pageable memory; every move corrects it.
BYTES_A_SECOND = 6e9
# Host memory that a copy of the weights must leave to others.
HOST_RESERVE_BYTES = 2**30


class IdleWeights:
    """The parameters and buffers of modules that lie on `device`, as one thing that can be dropped.

    Modules keep their identity and hooks; only the memory behind their tensors moves.
    """

    def __init__(self, modules: Iterable[torch.nn.Module], device: torch.device) -> None:
        tensors = [t for module in modules for t in (*module.parameters(), *module.buffers())]
        self._tensors = list({id(t): t for t in tensors if t.device == device}.values())
        self._device = device
        self._bytes_a_second = BYTES_A_SECOND
        self.on_device = True

    @property
    def size_bytes(self) -> int:
        """Bytes of the weights, wherever they are."""
        return sum(t.nbytes for t in self._tensors)

    @property
    def droppable_bytes(self) -> int:
        """What dropping would free now: nothing where it is done already, or the host has no room for a
        copy.
        """
        room = read_host().free_bytes - HOST_RESERVE_BYTES
        return self.size_bytes if self.on_device and room >= self.size_bytes else 0

    @property
    def reload_seconds(self) -> float:
        """Both ways, by the speed of the moves so far."""
        return 2 * self.size_bytes / self._bytes_a_second

    def drop(self) -> None:
        """Move the weights to the host; what they held on the device comes free."""
        if self.on_device:
            self._move(torch.device("cpu"))
            self.on_device = False

    def restore(self, free_bytes: int) -> None:
        """Bring the weights back, if they are gone. `DoesNotFit` where `free_bytes` are too few."""
        if self.on_device:
            return
        if free_bytes < self.size_bytes:
            raise DoesNotFit(
                "bringing weights back to the device",
                needed_bytes=self.size_bytes,
                budget_bytes=free_bytes,
            )
        self._move(self._device)
        self.on_device = True

    def _move(self, device: torch.device) -> None:
        started = time.perf_counter()
        for tensor in self._tensors:
            tensor.data = tensor.data.to(device, copy=True)
        seconds = (
            time.perf_counter() - started
        )  # copies of pageable memory do not return before they are done
        if seconds > 0 and self.size_bytes:
            self._bytes_a_second = self.size_bytes / seconds
