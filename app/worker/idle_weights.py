"""Moves weights that are idle during decoding off the device and back.

Owns the moves and the measurement of their speed. `adaptive.planning.planner` decides whether a move is worth
its time; `app.worker.decoding` decides when.
"""

import time
from collections.abc import Iterable

import torch

from adaptive.device.host import read_host
from adaptive.errors import DoesNotFit

# Initial estimate: PCIe 3 from pageable memory. Every move replaces it with the measured speed.
BYTES_A_SECOND = 6e9
# Host memory that must stay free after the weights are copied there.
HOST_RESERVE_BYTES = 2**30


class IdleWeights:
    """The parameters and buffers of modules on `device`, dropped and restored together.

    Modules keep their identity and hooks; only the memory of their tensors moves.
    """

    def __init__(self, modules: Iterable[torch.nn.Module], device: torch.device) -> None:
        tensors = [t for module in modules for t in (*module.parameters(), *module.buffers())]
        self._tensors = list({id(t): t for t in tensors if t.device == device}.values())
        self._device = device
        self._bytes_a_second = BYTES_A_SECOND
        self.on_device = True

    @property
    def size_bytes(self) -> int:
        """Bytes of the weights, on the device or on the host."""
        return sum(t.nbytes for t in self._tensors)

    @property
    def droppable_bytes(self) -> int:
        """Bytes that `drop` would free now; 0 after `drop`, or if the host has no room for a copy."""
        host_budget_bytes = read_host().free_bytes - HOST_RESERVE_BYTES
        return self.size_bytes if self.on_device and host_budget_bytes >= self.size_bytes else 0

    @property
    def reload_seconds(self) -> float:
        """Predicted seconds to drop the weights and restore them, at the speed of the last move."""
        return 2 * self.size_bytes / self._bytes_a_second

    def leave_out(self, tensors: Iterable[torch.Tensor]) -> None:
        """Forget tensors that are no weights of the modules any more."""
        gone = {id(tensor) for tensor in tensors}
        self._tensors = [tensor for tensor in self._tensors if id(tensor) not in gone]

    def drop(self) -> None:
        """Move the weights to the host, which frees their device memory."""
        if self.on_device:
            self.on_device = False
            self._move(torch.device("cpu"))

    def restore(self, free_bytes: int) -> None:
        """Move dropped weights back to the device. Raises `DoesNotFit` if `free_bytes` is too little."""
        if self.on_device:
            return
        if free_bytes < self.size_bytes:
            raise DoesNotFit(
                "restoring weights to the device",
                needed_bytes=self.size_bytes,
                budget_bytes=free_bytes,
            )
        self.on_device = True  # also of weights whose move fails half-way: `drop` moves them all back
        self._move(self._device)

    def _move(self, device: torch.device) -> None:
        started = time.perf_counter()
        for tensor in self._tensors:
            tensor.data = tensor.data.to(device, copy=True)
        # Copies from and to pageable memory return when they are complete: no synchronisation is needed.
        seconds = time.perf_counter() - started
        if seconds > 0 and self.size_bytes:
            self._bytes_a_second = self.size_bytes / seconds
