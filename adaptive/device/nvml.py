"""Reads the NVIDIA driver's data about its GPUs, through the `pynvml` module of nvidia-ml-py.

Owns opening the library, devices by UUID, their free and used bytes, the processes on them, and the mapping
of CUDA's `cuda:N` to the driver's UUID. A failure is a state in the result, never an exception: on a machine
without a driver, or with a card that fell off the bus, a server must start and report what is wrong. This
module does not know torch, jobs or plans.
"""

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from types import TracebackType
from typing import Any, Self, TypeVar

T = TypeVar("T")


class NvmlState(StrEnum):
    """Condition of the driver, or of one GPU."""

    OK = "ok"
    NO_DRIVER = "no_driver"  # the library or the kernel driver is absent
    NO_GPU = "no_gpu"  # a driver without any GPU
    GPU_LOST = "gpu_lost"  # fell off the bus: only a reset or reboot brings it back
    NOT_FOUND = "not_found"  # no GPU with that UUID
    ERROR = "error"  # any other failure of the driver


@dataclass(frozen=True, slots=True)
class GpuProcess:
    """A process with a context on a GPU.

    `used_bytes` is None where the driver does not report it (WSL, some containers).
    """

    pid: int
    used_bytes: int | None


@dataclass(frozen=True, slots=True)
class GpuInfo:
    """A reading of one GPU. Byte counts are 0 and `utilization` None unless `state` is ok.

    `used_bytes` is total less free: all processes, their contexts, and the driver's own memory.
    """

    uuid: str
    index: int
    name: str
    total_bytes: int
    free_bytes: int
    used_bytes: int
    utilization: float | None  # share of the last sample period with a kernel running, 0..1
    processes: tuple[GpuProcess, ...]
    state: NvmlState


def _unreadable(uuid: str, state: NvmlState, index: int = -1) -> GpuInfo:
    return GpuInfo(uuid, index, "", 0, 0, 0, None, (), state)


class Nvml:
    """The driver, opened at first use and again after a failure to open. Close it, or use it in a `with`."""

    def __init__(self) -> None:
        self._library: Any = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the driver's library; a later call opens it again."""
        if self._library is not None:
            library, self._library = self._library, None
            self._ask(library.nvmlShutdown, None)

    @property
    def state(self) -> NvmlState:
        """Current state: ok, no_driver, no_gpu or error."""
        count, state = self._count()
        return state if state is not NvmlState.OK or count else NvmlState.NO_GPU

    @property
    def driver_version(self) -> str | None:
        """The driver's version, or None without a driver."""
        if self._open() is not NvmlState.OK:
            return None
        version: str | None = self._ask(self._library.nvmlSystemGetDriverVersion, None)
        return version

    @property
    def cuda_version(self) -> tuple[int, int] | None:
        """The newest CUDA version (major, minor) that the driver supports; None where it is not known."""
        if self._open() is not NvmlState.OK:
            return None
        number: int | None = self._ask(self._library.nvmlSystemGetCudaDriverVersion, None)
        return None if number is None else (number // 1000, number % 1000 // 10)

    def devices(self) -> tuple[GpuInfo, ...]:
        """Every GPU in the driver's (PCI bus) order, lost ones included; empty without a driver or GPU."""
        count, _ = self._count()
        return tuple(self._device(index) for index in range(count))

    def read(self, uuid: str) -> GpuInfo:
        """Reading of the GPU or MIG slice with this full UUID."""
        opened = self._open()
        if opened is not NvmlState.OK:
            return _unreadable(uuid, opened)
        try:
            handle = self._library.nvmlDeviceGetHandleByUUID(uuid)
        except self._library.NVMLError as error:
            return _unreadable(uuid, self._state_of(error))
        return self._read(handle, uuid, self._ask(lambda: self._library.nvmlDeviceGetIndex(handle), -1))

    def _open(self) -> NvmlState:
        if self._library is not None:
            return NvmlState.OK
        try:
            import pynvml
        except ImportError:
            return NvmlState.NO_DRIVER
        try:
            pynvml.nvmlInit()
        except pynvml.NVMLError as error:
            return _state_of(pynvml, error)
        self._library = pynvml
        return NvmlState.OK

    def _state_of(self, error: Exception) -> NvmlState:
        return _state_of(self._library, error)

    def _count(self) -> tuple[int, NvmlState]:
        opened = self._open()
        if opened is not NvmlState.OK:
            return 0, opened
        try:
            return self._library.nvmlDeviceGetCount(), NvmlState.OK
        except self._library.NVMLError as error:
            return 0, self._state_of(error)

    def _ask(self, question: Callable[[], T], default: T) -> T:
        """The driver's answer, or `default` where it fails: a missing optional value must not hide the memory
        counts.
        """
        import pynvml

        try:
            return question()
        except pynvml.NVMLError:
            return default

    def _device(self, index: int) -> GpuInfo:
        try:
            handle = self._library.nvmlDeviceGetHandleByIndex(index)
            uuid = self._library.nvmlDeviceGetUUID(handle)
        except self._library.NVMLError as error:
            return _unreadable("", self._state_of(error), index)
        return self._read(handle, uuid, index)

    def _read(self, handle: Any, uuid: str, index: int) -> GpuInfo:
        library = self._library
        try:
            memory = library.nvmlDeviceGetMemoryInfo(handle)
        except library.NVMLError as error:
            return _unreadable(uuid, self._state_of(error), index)
        running: list[Any] = self._ask(lambda: library.nvmlDeviceGetComputeRunningProcesses(handle), [])
        rates = self._ask(lambda: library.nvmlDeviceGetUtilizationRates(handle), None)
        return GpuInfo(
            uuid=uuid,
            index=index,
            name=self._ask(lambda: library.nvmlDeviceGetName(handle), ""),
            total_bytes=int(memory.total),
            free_bytes=int(memory.free),
            used_bytes=int(memory.total) - int(memory.free),
            utilization=None if rates is None else rates.gpu / 100,
            processes=tuple(GpuProcess(each.pid, each.usedGpuMemory) for each in running),
            state=NvmlState.OK,
        )


def _state_of(library: Any, error: Exception) -> NvmlState:
    states = {
        library.NVML_ERROR_LIBRARY_NOT_FOUND: NvmlState.NO_DRIVER,
        library.NVML_ERROR_DRIVER_NOT_LOADED: NvmlState.NO_DRIVER,
        library.NVML_ERROR_LIB_RM_VERSION_MISMATCH: NvmlState.NO_DRIVER,
        library.NVML_ERROR_GPU_IS_LOST: NvmlState.GPU_LOST,
        library.NVML_ERROR_NOT_FOUND: NvmlState.NOT_FOUND,
        library.NVML_ERROR_INVALID_ARGUMENT: NvmlState.NOT_FOUND,
    }
    return states.get(getattr(error, "value", None), NvmlState.ERROR)


def cuda_visible_uuid(
    ordinal: int,
    *,
    devices: Sequence[GpuInfo] | None = None,
    environ: Mapping[str, str] | None = None,
) -> str | None:
    """UUID of the device that CUDA calls `cuda:<ordinal>`.

    None where CUDA sees no such device, or where its order of devices is not known.

    Follows the CUDA C programming guide, "CUDA Environment Variables". Entries of CUDA_VISIBLE_DEVICES are
    indices, GPU UUIDs or unambiguous prefixes of them, or MIG UUIDs (returned unchanged). The first invalid
    entry hides all that follow. Indices count in bus order only under CUDA_DEVICE_ORDER=PCI_BUS_ID. CUDA's
    default order is fastest first: it equals bus order where all cards are of one model, and is not known
    here where they differ.
    """
    env = os.environ if environ is None else environ
    if devices is None:
        with Nvml() as nvml:
            devices = nvml.devices()
    bus_order = env.get("CUDA_DEVICE_ORDER", "FASTEST_FIRST") == "PCI_BUS_ID"
    order_known = bus_order or len({device.name for device in devices}) <= 1
    listed = env.get("CUDA_VISIBLE_DEVICES")
    entries = [str(i) for i in range(len(devices))] if listed is None else listed.split(",")
    visible: list[str | None] = []
    for entry in entries:
        valid, uuid = _resolve(entry.strip(), devices, order_known)
        if not valid:
            break
        visible.append(uuid)
    return visible[ordinal] if 0 <= ordinal < len(visible) else None


def _resolve(entry: str, devices: Sequence[GpuInfo], order_known: bool) -> tuple[bool, str | None]:
    """Whether CUDA accepts an entry, and the UUID it means (None where the card is not known)."""
    if entry.startswith("MIG-"):
        return True, entry
    if entry.isdecimal():
        index = int(entry)
        if index >= len(devices):
            return False, None
        return True, devices[index].uuid or None if order_known else None
    matches = [device.uuid for device in devices if device.uuid.startswith(entry)] if entry else []
    return (True, matches[0]) if len(matches) == 1 else (False, None)
