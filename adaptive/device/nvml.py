"""Reads the NVIDIA driver's data about its GPUs, through the `pynvml` module of nvidia-ml-py.

Owns opening the library, devices by UUID, MIG instances, their free and used bytes, and the processes on
them. A failure is a state in the result, never an exception: on a machine without a driver, with a card that
fell off the bus, or with a driver whose answers make no sense, a server must start and report what is wrong.
A driver that does not report a card's memory has the card nevertheless. This module does not know torch, jobs
or plans.

Longer than 300 lines because all questions to the driver are asked here.
"""

import ctypes
import re
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from functools import partial
from types import TracebackType
from typing import Any, Self

from adaptive.device.driver_calls import DriverCallFailed, ask, ask_or, ask_text, readable_bytes

MOST_DEVICES = 256  # a driver that counts more does not count
MOST_PROCESSES = 4096  # on one card; a driver that counts more does not count
MOST_INSTANCES = 64  # MIG instances of a card; today's cards have at most 7
_UUID = re.compile(r"[A-Za-z0-9][A-Za-z0-9/_.:-]*")


class NvmlState(StrEnum):
    """Condition of the driver, or of one GPU."""

    OK = "ok"
    NO_DRIVER = "no_driver"  # the library or the kernel driver is absent
    NO_GPU = "no_gpu"  # a driver without any GPU
    GPU_LOST = "gpu_lost"  # fell off the bus: only a reset or reboot brings it back
    NOT_FOUND = "not_found"  # no GPU with that UUID
    MEMORY_UNKNOWN = "memory_unknown"  # a GPU whose memory the driver does not report: CUDA may well use it
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
    """A reading of one GPU or MIG instance. Byte counts are 0 unless `state` is ok.

    `uuid` and `name` are empty where the driver does not tell them. `used_bytes` is total less free: all
    processes, their contexts, and the driver's own memory.
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

    @property
    def is_mig(self) -> bool:
        """Whether this is a MIG instance, not a whole card."""
        return self.uuid.startswith("MIG-")


@dataclass(frozen=True, slots=True)
class GpuMemory:
    """Memory of one GPU or MIG instance; byte counts are 0 unless `state` is ok."""

    state: NvmlState
    total_bytes: int = 0
    free_bytes: int = 0


def _unreadable(uuid: str, state: NvmlState, index: int = -1) -> GpuInfo:
    return GpuInfo(uuid, index, "", 0, 0, 0, None, (), state)


class Nvml:
    """The driver, opened at first use and again after a failure to open. Close it, or use it in a `with`.

    No method raises because of what the driver does.
    """

    def __init__(self) -> None:
        self._library: Any = None
        self._handles: dict[str, Any] = {}

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
            self._handles.clear()
            ask_or(library.nvmlShutdown, None)

    @property
    def state(self) -> NvmlState:
        """Current state: ok, no_driver, no_gpu or error."""
        count, state = self._count()
        return state if state is not NvmlState.OK or count else NvmlState.NO_GPU

    @property
    def driver_version(self) -> str | None:
        """The driver's version, or None where it is not known."""
        if self._open() is not NvmlState.OK:
            return None
        try:
            return ask_text(self._library.nvmlSystemGetDriverVersion) or None
        except DriverCallFailed:
            return None

    @property
    def cuda_version(self) -> tuple[int, int] | None:
        """The newest CUDA version (major, minor) that the driver supports; None where it is not known."""
        if self._open() is not NvmlState.OK:
            return None
        number: int = ask_or(self._library.nvmlSystemGetCudaDriverVersion, 0)
        return (number // 1000, number % 1000 // 10) if 1000 <= number < 1_000_000 else None

    def devices(self) -> tuple[GpuInfo, ...]:
        """Every GPU in the driver's (PCI bus) order, lost ones included; empty without a driver or GPU.

        A card in MIG mode is replaced by its instances, which have its index.
        """
        count, _ = self._count()
        return tuple(device for index in range(count) for device in self._devices_of(index))

    def read(self, uuid: str) -> GpuInfo:
        """Reading of the GPU or MIG instance with this full UUID."""
        opened = self._open()
        if opened is not NvmlState.OK:
            return _unreadable(uuid, opened)
        library = self._library
        try:
            handle = ask(lambda: library.nvmlDeviceGetHandleByUUID(uuid))
        except DriverCallFailed as failure:
            state = _state_of(failure)
            found = () if state in (NvmlState.NOT_FOUND, NvmlState.GPU_LOST) else self.devices()
            return next((each for each in found if each.uuid == uuid), _unreadable(uuid, state))
        return self._read(handle, uuid, self._index_of(handle, uuid))

    def memory(self, uuid: str) -> GpuMemory:
        """Memory of the GPU or MIG instance with this full UUID: one question to the driver, not the seven of
        `read`. A handle that no longer answers is asked for again.
        """
        if uuid in self._handles and self._library is not None:
            total, free, state = self._bytes_of(self._handles[uuid])
            if state is NvmlState.OK:
                return GpuMemory(state, total, free)
        self._handles.pop(uuid, None)
        gpu = self.read(uuid)
        if gpu.state is NvmlState.OK:
            library = self._library
            handle = ask_or(lambda: library.nvmlDeviceGetHandleByUUID(uuid), None)
            if handle is not None:
                self._handles[uuid] = handle
        return GpuMemory(gpu.state, gpu.total_bytes, gpu.free_bytes)

    def _bytes_of(self, handle: Any) -> tuple[int, int, NvmlState]:
        """Total and free bytes, 0 where they are not known."""
        library = self._library
        try:
            memory = ask(lambda: library.nvmlDeviceGetMemoryInfo(handle))
            total, free = readable_bytes(memory.total), readable_bytes(memory.free, memory.total)
        except DriverCallFailed as failure:
            lost = _state_of(failure) is NvmlState.GPU_LOST
            return 0, 0, NvmlState.GPU_LOST if lost else NvmlState.MEMORY_UNKNOWN
        return (total, free, NvmlState.OK) if total and free is not None else (0, 0, NvmlState.MEMORY_UNKNOWN)

    def _index_of(self, handle: Any, uuid: str) -> int:
        library = self._library
        if uuid.startswith("MIG-"):
            handle = ask_or(lambda: library.nvmlDeviceGetDeviceHandleFromMigDeviceHandle(handle), handle)
        index: int = ask_or(lambda: library.nvmlDeviceGetIndex(handle), -1)
        return index if index < MOST_DEVICES else -1

    def _open(self) -> NvmlState:
        if self._library is not None:
            return NvmlState.OK
        try:
            import pynvml
        except ImportError:
            return NvmlState.NO_DRIVER
        try:
            ask(pynvml.nvmlInit)
        except DriverCallFailed as failure:
            return _state_of(failure)
        self._library = pynvml
        return NvmlState.OK

    def _count(self) -> tuple[int, NvmlState]:
        opened = self._open()
        if opened is not NvmlState.OK:
            return 0, opened
        try:
            count = ask(self._library.nvmlDeviceGetCount)
        except DriverCallFailed as failure:
            return 0, _state_of(failure)
        return (count, NvmlState.OK) if count <= MOST_DEVICES else (0, NvmlState.ERROR)

    def _devices_of(self, index: int) -> Iterator[GpuInfo]:
        """The card of this index, or its MIG instances."""
        library = self._library
        try:
            handle = ask(lambda: library.nvmlDeviceGetHandleByIndex(index))
        except DriverCallFailed as failure:
            yield _unreadable("", _state_of(failure), index)
            return
        instances = tuple(self._instances_of(handle, index))
        yield from instances or (self._identified(handle, index),)

    def _instances_of(self, handle: Any, index: int) -> Iterator[GpuInfo]:
        library = self._library
        mode: list[int] = ask_or(lambda: library.nvmlDeviceGetMigMode(handle), [0, 0])
        if mode[0] != library.NVML_DEVICE_MIG_ENABLE:
            return
        slots: int = ask_or(lambda: library.nvmlDeviceGetMaxMigDeviceCount(handle), 0)
        for slot in range(min(slots, MOST_INSTANCES)):
            instance = ask_or(partial(library.nvmlDeviceGetMigDeviceHandleByIndex, handle, slot), None)
            if instance is not None:
                yield self._identified(instance, index)

    def _identified(self, handle: Any, index: int) -> GpuInfo:
        try:
            uuid = ask_text(self._library.nvmlDeviceGetUUID, handle)
        except DriverCallFailed as failure:
            if _state_of(failure) is NvmlState.GPU_LOST:
                return _unreadable("", NvmlState.GPU_LOST, index)
            uuid = ""
        return self._read(handle, uuid if _UUID.fullmatch(uuid) else "", index)

    def _read(self, handle: Any, uuid: str, index: int) -> GpuInfo:
        library = self._library
        total, free, state = self._bytes_of(handle)
        if state is NvmlState.GPU_LOST:
            return _unreadable(uuid, state, index)
        rates = ask_or(lambda: library.nvmlDeviceGetUtilizationRates(handle), None)
        return GpuInfo(
            uuid=uuid,
            index=index,
            name=_name_of(library, handle),
            total_bytes=total,
            free_bytes=free,
            used_bytes=total - free,
            utilization=rates.gpu / 100 if rates is not None and 0 <= rates.gpu <= 100 else None,
            processes=_processes_on(library, handle, total or None),
            state=state,
        )


def _name_of(library: Any, handle: Any) -> str:
    try:
        return ask_text(library.nvmlDeviceGetName, handle)
    except DriverCallFailed:
        return ""


def _process_count(library: Any, handle: Any) -> int:
    """The number of processes, which `pynvml` believes: it would make room for four billion."""
    count = ctypes.c_uint(0)
    library.nvmlLib.nvmlDeviceGetComputeRunningProcesses_v3(handle, ctypes.byref(count), None)
    return count.value


def _processes_on(library: Any, handle: Any, total_bytes: int | None) -> tuple[GpuProcess, ...]:
    if ask_or(lambda: _process_count(library, handle), 0) > MOST_PROCESSES:
        return ()
    running: list[Any] = ask_or(lambda: library.nvmlDeviceGetComputeRunningProcesses(handle), [])
    most = {} if total_bytes is None else {"most": total_bytes}
    return tuple(
        GpuProcess(
            each.pid, None if each.usedGpuMemory is None else readable_bytes(each.usedGpuMemory, **most)
        )
        for each in running
    )


_STATES = {  # NVML's codes; those that are not here are `ERROR`
    2: NvmlState.NOT_FOUND,  # invalid argument
    6: NvmlState.NOT_FOUND,
    9: NvmlState.NO_DRIVER,  # not loaded
    12: NvmlState.NO_DRIVER,  # library not found
    15: NvmlState.GPU_LOST,
    16: NvmlState.GPU_LOST,  # reset required
    18: NvmlState.NO_DRIVER,  # the library and the kernel's part are of different versions
    28: NvmlState.NOT_FOUND,
}


def _state_of(failure: DriverCallFailed) -> NvmlState:
    return _STATES.get(failure.code or 0, NvmlState.ERROR)
