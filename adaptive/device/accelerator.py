"""What torch offers for a device, whatever kind of accelerator it is: CUDA, ROCm, XPU, MPS, other back ends.

Owns which functions of `torch.<kind>` are called, and what stands in where a kind lacks one. It does not know
the driver, readings or decodes.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor


def is_accelerator(device: torch.device) -> bool:
    """Whether the device has memory, a queue of work and random numbers of its own."""
    return device.type not in ("cpu", "meta")


def module_of(device: torch.device) -> Any:
    """`torch.cuda`, `torch.xpu`, `torch.mps` or another module; `RuntimeError` where torch has no such
    kind."""
    return torch.get_device_module(device)


def is_available(device: torch.device) -> bool:
    """Whether torch can use the device on this machine."""
    try:
        module = module_of(device)
    except RuntimeError:  # no back end of this kind is loaded
        return False
    return bool(module.is_available() and (device.index or 0) < module.device_count())


def with_index(device: torch.device) -> torch.device:
    """The device that `device` means now: without an index it is the current one of its kind."""
    index: int | None = device.index  # torch's types leave None out
    if index is not None or not is_accelerator(device):
        return device
    current = getattr(module_of(device), "current_device", None)
    return torch.device(device.type, current() if current is not None else 0)


def synchronize(device: torch.device) -> None:
    """Wait until the device has finished all queued work; a host has none."""
    if is_accelerator(device):
        torch.accelerator.synchronize(device)


class Stopwatch:
    """Times what a device does from now on, without waiting for work that other streams do.

    Two events on the current stream where the device has them; else the device is waited for twice.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._events = has_streams(device) and hasattr(module_of(device), "Event")
        self._began = self._now()

    def seconds(self) -> float:
        """Wait for what the current stream has been given so far; the seconds from the beginning until then.

        Work of the stream from before the beginning does not count.
        """
        ended = self._now()
        if not self._events:
            return float(ended - self._began)
        ended.synchronize()
        return float(self._began.elapsed_time(ended)) / 1000

    def _now(self) -> Any:
        if not self._events:
            synchronize(self._device)
            return time.perf_counter()
        module = module_of(self._device)
        event = module.Event(enable_timing=True)
        event.record(module.current_stream(self._device))
        return event


def has_streams(device: torch.device) -> bool:
    """Whether copies can run beside computation on a second stream."""
    return is_accelerator(device) and hasattr(module_of(device), "current_stream")


def random_state(device: torch.device) -> Tensor:
    """State of the default random generator that a call on `device` draws from: a tensor of the host."""
    if not is_accelerator(device):
        return torch.get_rng_state()
    module = module_of(device)
    state: Tensor = module.get_rng_state() if device.type == "mps" else module.get_rng_state(device)
    return state.cpu()


def set_random_state(device: torch.device, state: Tensor) -> None:
    """Set the generator that `random_state` reads."""
    if not is_accelerator(device):
        torch.set_rng_state(state.cpu())
    elif device.type == "mps":
        module_of(device).set_rng_state(state.cpu())
    else:
        module_of(device).set_rng_state(state.cpu(), device)


def random_states(*devices: torch.device) -> dict[str, Tensor]:
    """States of the default generators of the host and of `devices`, as far as this machine has them."""
    return {
        str(device): random_state(device)
        for device in (torch.device("cpu"), *devices)
        if is_available(device)
    }


@contextmanager
def randomness_kept(*devices: torch.device) -> Iterator[None]:
    """Put the default generators of the host and of `devices` back at the end of the block."""
    before = random_states(*devices)
    try:
        yield
    finally:
        for name, state in before.items():
            set_random_state(torch.device(name), state)
