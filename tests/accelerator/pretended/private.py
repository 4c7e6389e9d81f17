"""The pretended cards as a device of another name: `torch.pretended`, torch's PrivateUse1 back end."""

from __future__ import annotations

import sys
import types
from typing import Any

import torch

from pretended.environment import PRIVATE_NAME
from pretended.start import default_generators


def _index(device: Any = None) -> int:
    current: int = torch._C._accelerator_getDeviceIndex()
    if device is None or isinstance(device, int):
        return current if device is None else device
    index = torch.device(device).index
    return current if index is None else index


class Device:
    """Context manager of the current device."""

    def __init__(self, device: Any) -> None:
        self._device = _index(device)

    def __enter__(self) -> None:
        self._before = torch._C._accelerator_exchangeDevice(self._device)

    def __exit__(self, *_: object) -> None:
        torch._C._accelerator_exchangeDevice(self._before)


def install() -> None:
    """Register `torch.pretended`."""
    torch.utils.rename_privateuse1_backend(PRIVATE_NAME)
    generators = default_generators()
    accelerator = torch.accelerator

    def manual_seed_all(seed: int) -> None:
        for each in generators:
            each.manual_seed(seed)

    module = types.ModuleType(f"torch.{PRIVATE_NAME}")
    module.__dict__.update(
        is_available=lambda: True,
        is_initialized=lambda: True,
        _is_in_bad_fork=lambda: False,
        _lazy_init=lambda: None,
        device_count=torch._C._accelerator_hooks_device_count,
        current_device=torch._C._accelerator_getDeviceIndex,
        set_device=lambda device: torch._C._accelerator_setDeviceIndex(_index(device)),
        device=Device,
        synchronize=lambda device=None: accelerator.synchronize(_index(device)),
        mem_get_info=lambda device=None: accelerator.get_memory_info(_index(device)),
        memory_stats=lambda device=None: accelerator.memory_stats(_index(device)),
        memory_allocated=lambda device=None: accelerator.memory_allocated(_index(device)),
        max_memory_allocated=lambda device=None: accelerator.max_memory_allocated(_index(device)),
        memory_reserved=lambda device=None: accelerator.memory_reserved(_index(device)),
        max_memory_reserved=lambda device=None: accelerator.max_memory_reserved(_index(device)),
        reset_peak_memory_stats=lambda device=None: accelerator.reset_peak_memory_stats(_index(device)),
        empty_cache=accelerator.empty_cache,
        Stream=torch.Stream,
        Event=torch.Event,
        current_stream=lambda device=None: accelerator.current_stream(_index(device)),
        stream=lambda stream: stream,  # a stream of torch is its own context manager
        default_generators=generators,
        get_rng_state=lambda device=PRIVATE_NAME: generators[_index(device)].get_state(),
        set_rng_state=lambda state, device=PRIVATE_NAME: generators[_index(device)].set_state(state),
        manual_seed=lambda seed: generators[_index()].manual_seed(seed),
        manual_seed_all=manual_seed_all,
        get_amp_supported_dtype=lambda: [torch.float16, torch.bfloat16],
        get_device_name=lambda _device=None: "PretendedCard",
    )
    torch._register_device_module(PRIVATE_NAME, module)
    sys.modules[module.__name__] = module
    torch.utils.generate_methods_for_privateuse1_backend()
