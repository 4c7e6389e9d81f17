"""`torch.cuda` over the pretended cards, for a torch that was built without CUDA.

`torch.cuda` is Python over some functions `torch._C._cuda_*`. Most of them have a counterpart
in `torch.accelerator`.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch

from pretended.start import default_generators, visible_cards

_CUDA = 1  # c10::DeviceType::CUDA


class Stream(torch.Stream):
    """`torch.cuda.Stream` on torch's generic stream."""

    def __new__(cls, device: Any = None, priority: int = 0, **ids: Any) -> Any:
        if ids:
            return super().__new__(cls, **ids)
        index = torch.cuda._get_device_index(device, optional=True)
        return super().__new__(cls, device=torch.device("cuda", index), priority=priority)


class Event:
    """`torch.cuda.Event` is torch's generic event, which takes no subclass of itself for `elapsed_time`."""

    def __new__(cls, enable_timing: bool = False, **_options: bool) -> Any:
        return torch.Event(device=torch.device("cuda"), enable_timing=enable_timing)


def install() -> None:
    """Make `torch.cuda` work on the pretended cards."""
    c = torch._C
    if hasattr(c, "_cuda_getDeviceCount"):
        raise RuntimeError("this torch has a CUDA of its own")
    functions = {
        "getDeviceCount": c._accelerator_hooks_device_count,
        "init": lambda: None,
        "isInBadFork": lambda: False,
        "getDevice": c._accelerator_hooks_get_current_device,
        "setDevice": c._accelerator_setDeviceIndex,
        "exchangeDevice": c._accelerator_exchangeDevice,
        "maybeExchangeDevice": c._accelerator_maybeExchangeDevice,
        "synchronize": lambda: c._accelerator_synchronizeDevice(c._accelerator_getDeviceIndex()),
        "emptyCache": c._accelerator_emptyCache,
        "memoryStats": c._accelerator_getDeviceStats,
        "resetPeakMemoryStats": c._accelerator_resetPeakStats,
        "resetAccumulatedMemoryStats": c._accelerator_resetAccumulatedStats,
        "getCurrentStream": lambda index: (c._accelerator_getStream(index).stream_id, index, _CUDA),
        "getDefaultStream": lambda index: (0, index, _CUDA),
        "getCurrentRawStream": lambda index: c._accelerator_getStream(index).stream_id,
        "setStream": _set_stream,
        "getArchFlags": lambda: "sm_90",
        "canDeviceAccessPeer": lambda _a, _b: False,
        "isCurrentStreamCapturing": lambda: False,
        "getAllocatorBackend": lambda: "native",
    }
    for name, function in functions.items():
        setattr(c, f"_cuda_{name}", function)
    torch.cuda._cudart = SimpleNamespace(  # type: ignore[assignment]
        cudaMemGetInfo=c._accelerator_getMemoryInfo, cudaGetErrorString=lambda _code: "pretended"
    )
    torch.cuda._exchange_device = c._accelerator_exchangeDevice
    torch.cuda._maybe_exchange_device = c._accelerator_maybeExchangeDevice
    torch.cuda._queued_calls.clear()  # they check a real device's capability
    torch.cuda._tls.__dict__.pop("is_initializing", None)
    torch.cuda.device_count = c._accelerator_hooks_device_count  # type: ignore[assignment]
    torch.cuda.get_device_properties = _properties  # type: ignore[assignment]
    torch.cuda.get_arch_list = lambda: ["sm_90"]
    torch.cuda.default_generators = default_generators()
    for module in (torch.cuda, torch.cuda.streams):
        module.Stream, module.Event = Stream, Event  # type: ignore[misc, assignment, attr-defined]
    torch.Tensor.__deepcopy__ = _deepcopy(torch.Tensor.__deepcopy__)  # type: ignore[method-assign]
    torch.cuda.init()


def _set_stream(stream_id: int, device_index: int, device_type: int) -> None:
    torch._C._accelerator_setStream(
        torch.Stream(stream_id=stream_id, device_index=device_index, device_type=device_type)
    )


def _properties(device: Any = None) -> Any:
    card = visible_cards()[torch.cuda._get_device_index(device, optional=True)]
    return SimpleNamespace(
        name=card.name,
        uuid=card.uuid.removeprefix("GPU-"),
        total_memory=card.capacity_bytes,
        major=9,
        minor=0,
        multi_processor_count=1,
    )


def _deepcopy(original: Any) -> Any:
    """`Tensor.__deepcopy__`: the original copies a storage, which this build of torch cannot make on CUDA."""

    def deepcopy(tensor: torch.Tensor, memo: dict[int, Any]) -> Any:
        if tensor.device.type != "cuda" or type(tensor) is not torch.Tensor or id(tensor) in memo:
            return original(tensor, memo)
        memo[id(tensor)] = tensor.detach().clone().requires_grad_(tensor.requires_grad)
        return memo[id(tensor)]

    return deepcopy
