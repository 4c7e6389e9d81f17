"""The one place that asks a device about its memory: NVML and torch's allocator on CUDA, the host's limits on
CPU.

Owns: live readings, peaks above a moment, giving back cached memory, and what counts as out of memory. Must
not know: plans, decodes.
"""

import gc
import os
import time
from typing import Protocol

import torch

from adaptive.device.host import ResidentPeak, limit_heap_growth, read_host, trim_heap
from adaptive.device.nvml import GpuInfo, Nvml, NvmlState, cuda_visible_uuid
from adaptive.errors import NoDevice
from adaptive.types import MeasuredPeak, MemoryReading

# A context's kernels and handles are some hundred MB; a larger move of the driver's figure is a neighbour's.
MOST_OUTSIDE_BYTES = 512 * 2**20


class MemoryProbe(Protocol):
    """What a decoder asks of a device.

    `noise_bytes`: how far a peak may be off; decodes with fewer live bytes teach nothing of memory.
    """

    noise_bytes: int

    def read(self) -> MemoryReading:
        """Memory as it is now. `NoDevice` where the device is gone."""

    def reset_peak(self) -> None:
        """Count the peak from here."""

    def peak(self, held_bytes: int = 0) -> MeasuredPeak | None:
        """Highest memory since the reset, above what was held then; None where the device cannot tell.

        `held_bytes`: the caller's results that are still alive.
        """

    def release(self) -> None:
        """Give cached memory back to the device, so that a reading shows what is really free."""


def open_probe(device: str) -> MemoryProbe:
    """Probe of "cpu" or of a CUDA device such as "cuda:0". `NoDevice` where torch has no such device."""
    kind = torch.device(device)
    if kind.type == "cpu":
        return CpuProbe()
    if kind.type != "cuda" or not torch.cuda.is_available():
        raise NoDevice(device, Nvml().state if kind.type == "cuda" else NvmlState.NOT_FOUND)
    if (kind.index or 0) >= torch.cuda.device_count():
        raise NoDevice(device, NvmlState.NOT_FOUND)
    return CudaProbe(kind.index or 0)


class CpuProbe:
    """Host memory; the peak is the resident set's high-water mark."""

    noise_bytes = 16_000_000  # pages of code and small objects take a MB or two

    def __init__(self) -> None:
        limit_heap_growth()
        self._peak = ResidentPeak()

    def read(self) -> MemoryReading:
        """Free host memory under every limit on this process."""
        return read_host()

    def reset_peak(self) -> None:
        """Reset the high-water mark."""
        self._peak.reset()

    def peak(self, held_bytes: int = 0) -> MeasuredPeak | None:
        """Growth of the resident set."""
        return self._peak.growth(held_bytes)

    def release(self) -> None:
        """Trim the heap."""
        trim_heap()


class CudaProbe:
    """A CUDA device, by the driver where it answers, else by the CUDA runtime.

    Free is what the driver says plus what torch's allocator holds and can hand out: reserved less allocated,
    without the unused parts of split blocks, which serve small requests only.
    """

    noise_bytes = 0

    def __init__(self, ordinal: int) -> None:
        self._device = torch.device("cuda", ordinal)
        self._nvml = Nvml()
        self._uuid = _uuid_of(ordinal)
        self._base_allocated = self._base_reserved = self._base_outside = 0
        self._context_bytes = self._create_context()
        self.reset_peak()

    def _create_context(self) -> int:
        """Create this process' context and return what it took, as the driver saw it."""
        before = self._gpu()
        torch.zeros(1, device=self._device)
        torch.cuda.synchronize(self._device)
        after = self._gpu()
        if before is None or after is None:
            return 0
        own = next((p.used_bytes for p in after.processes if p.pid == os.getpid() and p.used_bytes), None)
        reserved = torch.cuda.memory_reserved(self._device)
        return max(0, (own if own is not None else before.free_bytes - after.free_bytes) - reserved)

    def _gpu(self) -> GpuInfo | None:
        if self._uuid is None:
            return None
        gpu = self._nvml.read(self._uuid)
        if gpu.state is NvmlState.GPU_LOST:
            raise NoDevice(str(self._device), gpu.state)
        return gpu if gpu.state is NvmlState.OK else None

    def read(self) -> MemoryReading:
        """Free, reusable, own and others' bytes."""
        stats = torch.cuda.memory_stats(self._device)
        reserved = stats.get("reserved_bytes.all.current", 0)
        allocated = stats.get("allocated_bytes.all.current", 0)
        split = stats.get("inactive_split_bytes.all.current", 0)
        reusable = max(0, reserved - allocated - split)
        gpu = self._gpu()
        if gpu is None:
            free, total = torch.cuda.mem_get_info(self._device)
            source = "cuda"
        else:
            free, total, source = gpu.free_bytes, gpu.total_bytes, "nvml"
        own = reserved + self._context_bytes
        return MemoryReading(
            str(self._device),
            free + reusable,
            total,
            reusable,
            own,
            max(0, total - free - own),
            source,
        )

    def reset_peak(self) -> None:
        """Reset torch's allocated peak: what is reserved beyond it is opportunistic."""
        torch.cuda.synchronize(self._device)
        torch.cuda.reset_peak_memory_stats(self._device)
        self._base_allocated = torch.cuda.memory_allocated(self._device)
        self._base_reserved = torch.cuda.memory_reserved(self._device)
        self._base_outside = self._outside()

    def peak(self, held_bytes: int = 0) -> MeasuredPeak | None:  # noqa: ARG002 - torch counts allocations itself
        """Allocated peak above the reset; what was reserved beyond it; what the driver saw beyond that."""
        torch.cuda.synchronize(self._device)
        allocated = max(0, torch.cuda.max_memory_allocated(self._device) - self._base_allocated)
        reserved = max(0, torch.cuda.max_memory_reserved(self._device) - self._base_reserved)
        outside = min(max(0, self._outside() - self._base_outside), MOST_OUTSIDE_BYTES)
        return MeasuredPeak(allocated, max(0, reserved - allocated), outside)

    def _outside(self) -> int:
        """Used bytes that torch did not reserve: of this process where the driver tells, else of all."""
        gpu = self._gpu()
        if gpu is None:
            return 0
        own = next((p.used_bytes for p in gpu.processes if p.pid == os.getpid() and p.used_bytes), None)
        used = gpu.total_bytes - gpu.free_bytes if own is None else own
        return used - torch.cuda.memory_reserved(self._device)

    def release(self) -> None:
        """Collect garbage and empty torch's cache."""
        gc.collect()
        torch.cuda.empty_cache()


def _uuid_of(ordinal: int) -> str | None:
    """The driver's UUID of a CUDA ordinal: from the runtime where it tells, else from the environment."""
    told = getattr(torch.cuda.get_device_properties(ordinal), "uuid", None)
    if told is None:
        return cuda_visible_uuid(ordinal)
    text = str(told)
    return text if text.startswith(("GPU-", "MIG-")) else f"GPU-{text}"


# What torch and the libraries under it say when an allocation fails; each is a substring of the real message.
_OUT_OF_MEMORY = (
    "DefaultCPUAllocator: can't allocate memory",
    "DefaultCPUAllocator: not enough memory",
    "CUDA out of memory",
    "CUDA error: out of memory",
    "CUDNN_STATUS_ALLOC_FAILED",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "std::bad_alloc",
    "could not create a primitive",  # oneDNN, when its own scratch or code buffer cannot be had
    "could not execute a primitive",
)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an exception is an allocation that failed, on any device."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(text in str(error) for text in _OUT_OF_MEMORY)


def synchronized_seconds(device: torch.device) -> float:
    """A clock reading after the device has finished what was asked of it."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
