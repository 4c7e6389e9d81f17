"""The one place that measures a device's memory: NVML and torch's allocator on accelerators, the host's
limits on CPU.

Owns readings, peaks since a reset, and the release of cached memory. It does not know plans or decodes.
Longer than 300 lines: what is read, and how, differs by device, and nothing else may know it.
"""

import gc
import os
import time
from collections.abc import Mapping
from typing import Protocol

import torch

from adaptive.device.accelerator import is_accelerator, is_available, module_of, synchronize, with_index
from adaptive.device.host import ResidentPeak, limit_heap_growth, read_host, trim_heap
from adaptive.device.nvml import GpuInfo, GpuMemory, Nvml, NvmlState
from adaptive.device.visible_devices import cuda_visible_uuid
from adaptive.errors import NoDevice
from adaptive.types import MeasuredPeak, MemoryReading

# A context's kernels and handles take some hundred MB. A larger change of the driver's figure belongs to
# another process.
MOST_OUTSIDE_BYTES = 512 * 2**20
# The least part of a card's memory that CUDA reports of the whole card: the driver keeps some for itself.
PART_OF_A_CARD = 0.75
KNOWN_TO_DRIVER = (NvmlState.OK, NvmlState.MEMORY_UNKNOWN, NvmlState.GPU_LOST)


class MemoryProbe(Protocol):
    """Measures a device's memory for a decoder.

    `noise_bytes` is the error of a measured peak; decodes with fewer live bytes teach nothing about memory.
    """

    noise_bytes: int

    def read(self) -> MemoryReading:
        """The device's current memory. `NoDevice` where the device is lost."""

    def reset_peak(self) -> None:
        """Start to measure a new peak."""

    def peak(self, held_bytes: int = 0) -> MeasuredPeak | None:
        """Peak since the reset, above the memory in use then; None where the device cannot measure it.

        `held_bytes` are the bytes of results that the caller still holds.
        """

    def release(self) -> None:
        """Return cached memory to the device, so that a reading shows all free memory."""


def open_probe(device: str, *, resets_peaks: bool = True) -> MemoryProbe:
    """Probe of "cpu" or of an accelerator such as "cuda:0"; without an index, of the current one of its kind.

    With `resets_peaks=False`, torch's peak statistics of the accelerator stay those of the caller's program.

    Raises `NoDevice` where torch has no such device (`not_found`), or where nothing tells how much of its
    memory is free (`memory_unknown`).
    """
    wanted = torch.device(device)
    if wanted.type == "cpu":
        return CpuProbe()
    if not is_accelerator(wanted) or not is_available(wanted):
        absent = wanted.type == "cuda" and not torch.cuda.is_available()
        raise NoDevice(device, Nvml().state if absent else NvmlState.NOT_FOUND)
    if wanted.type == "mps":
        return MpsProbe()
    if not all(hasattr(module_of(wanted), name) for name in ("mem_get_info", "memory_stats")):
        raise NoDevice(device, NvmlState.MEMORY_UNKNOWN)
    return AcceleratorProbe(with_index(wanted), resets_peaks=resets_peaks)


def is_nvidia(device: torch.device) -> bool:
    """Whether NVIDIA's driver knows the device: torch calls AMD's cards "cuda", too."""
    return device.type == "cuda" and torch.version.hip is None


def device_name(device: torch.device) -> str:
    """What costs are learned by: "cpu", or the kind of accelerator and its name."""
    name_of = getattr(module_of(device), "get_device_name", None) if is_accelerator(device) else None
    if name_of is None:
        return device.type
    try:
        return f"{device.type} {name_of(device)}"
    except UnicodeDecodeError:  # some drivers' text is not UTF-8
        major, minor = torch.cuda.get_device_capability(device)
        return f"cuda sm_{major}{minor}"


def build_name() -> str:
    """Versions of torch and cuDNN, on which learned costs depend."""
    return f"torch {torch.__version__} cudnn {torch.backends.cudnn.version()}"  # type: ignore[no-untyped-call]  # torch's


class CpuProbe:
    """Probe of host memory; the peak is the high-water mark of the resident set."""

    noise_bytes = 16_000_000  # loaded code and small objects change the resident set by a few MB

    def __init__(self) -> None:
        limit_heap_growth()
        self._peak = ResidentPeak()

    def read(self) -> MemoryReading:
        """Host memory under every limit on this process."""
        return read_host()

    def reset_peak(self) -> None:
        """Reset the high-water mark."""
        self._peak.reset()

    def peak(self, held_bytes: int = 0) -> MeasuredPeak | None:
        """Peak growth of the resident set since the reset."""
        return self._peak.growth(held_bytes)

    def release(self) -> None:
        """Trim the heap."""
        trim_heap()

    def release_young(self) -> None:
        """`release` without a collection of old garbage, which takes 0.4 s in a process with diffusers."""
        trim_heap(1)


class AcceleratorProbe:
    """Probe of an accelerator with torch's caching allocator: CUDA, ROCm, XPU and back ends like them.

    Free memory is what the device says is free, plus the bytes that torch's allocator can reuse: reserved
    less allocated, without the unused parts of split blocks, which serve small requests only. On an NVIDIA
    card the driver says what is free and what each process holds, else the device's runtime does.
    """

    noise_bytes = 0

    def __init__(self, device: torch.device, *, resets_peaks: bool = True) -> None:
        self._device = device
        self._resets_peaks = resets_peaks
        self._torch = module_of(device)
        self._nvml = Nvml()
        self._uuid = device_uuid(device.index, self._nvml) if is_nvidia(device) else None
        self._total_bytes = int(self._torch.mem_get_info(device)[1])
        self._base_allocated = self._base_reserved = self._base_outside = self._cached = 0
        self._peaks_before = (0, 0)
        self._context_bytes = self._create_context()
        self.reset_peak()

    def _create_context(self) -> int:
        """Create this process' context and return its bytes, as the driver reports them."""
        before = self._gpu()
        torch.zeros(1, device=self._device)
        synchronize(self._device)
        after = self._gpu()
        if before is None or after is None:
            return 0
        own = next((p.used_bytes for p in after.processes if p.pid == os.getpid() and p.used_bytes), None)
        reserved = int(self._torch.memory_reserved(self._device))
        return max(0, (own if own is not None else before.free_bytes - after.free_bytes) - reserved)

    def _gpu(self) -> GpuInfo | None:
        if self._uuid is None:
            return None
        gpu = self._nvml.read(self._uuid)
        return gpu if self._is_own(gpu) else None

    def _is_own(self, gpu: GpuInfo | GpuMemory) -> bool:
        """Whether the driver's reading is this device's; `NoDevice` if the device is lost."""
        if gpu.state is NvmlState.GPU_LOST:
            raise NoDevice(str(self._device), gpu.state)
        # A reading of much more memory than CUDA has is that of the card whose MIG instance this is.
        return gpu.state is NvmlState.OK and gpu.total_bytes * PART_OF_A_CARD <= self._total_bytes

    def read(self) -> MemoryReading:
        """Free, reusable and total bytes, and the bytes of this and other processes."""
        stats = self._torch.memory_stats(self._device)
        reserved = stats.get("reserved_bytes.all.current", 0)
        reusable = reusable_bytes(stats)
        gpu = None if self._uuid is None else self._nvml.memory(self._uuid)
        if gpu is None or not self._is_own(gpu):
            free, total = self._torch.mem_get_info(self._device)
            source = self._device.type
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
            stats.get("inactive_split_bytes.large_pool.current", 0),
            self._context_bytes,
        )

    def reset_peak(self) -> None:
        """Note the memory in use now, and reset torch's peaks unless they are the caller's.

        `peak` separates allocated from reserved memory, because the allocator may reserve more than it needs.
        """
        if self._resets_peaks:
            self._torch.reset_peak_memory_stats(self._device)
        self._peaks_before = self._peaks()
        self._base_allocated = self._torch.memory_allocated(self._device)
        self._base_reserved = self._torch.memory_reserved(self._device)
        self._cached = reusable_bytes(self._torch.memory_stats(self._device))
        self._base_outside = self._outside()

    def _peaks(self) -> tuple[int, int]:
        found = self._torch.max_memory_allocated(self._device), self._torch.max_memory_reserved(self._device)
        return int(found[0]), int(found[1])

    def peak(self, held_bytes: int = 0) -> MeasuredPeak | None:  # noqa: ARG002 - torch counts allocations itself
        """Growth since the reset: torch's allocated peak, the memory reserved beyond it, and the driver's
        figure beyond that.

        None where torch's peaks are not reset, and an earlier one is higher: it hides this one. Where memory
        that was cached before served everything, how much of it was needed beyond the tensors is not known.
        """
        peaks = self._peaks()
        if not self._resets_peaks and peaks[0] <= self._peaks_before[0]:
            return None
        allocated = max(0, peaks[0] - self._base_allocated)
        outside = min(max(0, self._outside() - self._base_outside), MOST_OUTSIDE_BYTES)
        if self._cached and peaks[1] <= self._peaks_before[1]:
            return MeasuredPeak(allocated, 0, outside, complete=False)
        reserved = max(0, peaks[1] - self._base_reserved + self._cached)
        return MeasuredPeak(allocated, max(0, reserved - allocated), outside)

    def _outside(self) -> int:
        """Bytes of this process that torch did not reserve.

        0 where the driver does not report processes: what others take must not be learned as ours.
        """
        gpu = self._gpu()
        own = next((p.used_bytes for p in gpu.processes if p.pid == os.getpid()), None) if gpu else None
        return own - int(self._torch.memory_reserved(self._device)) if own else 0

    def release(self) -> None:
        """Collect garbage and empty torch's cache."""
        gc.collect()
        self._torch.empty_cache()

    def release_young(self) -> None:
        """Nothing: what torch's allocator caches counts as free, and a collection takes long."""


class MpsProbe:
    """Probe of Apple's GPU, whose memory is the host's. torch counts no peaks there, so none are learned."""

    noise_bytes = 0

    def read(self) -> MemoryReading:
        """What Metal recommends to use at most, under every limit of the host."""
        total = torch.mps.recommended_max_memory()
        own = torch.mps.driver_allocated_memory()
        reusable = max(0, own - torch.mps.current_allocated_memory())
        host = read_host()
        unused = min(max(0, total - own), host.free_bytes)
        return MemoryReading("mps", unused + reusable, total, reusable, own, host.other_bytes, "mps")

    def reset_peak(self) -> None:
        """Nothing to reset."""

    def peak(self, held_bytes: int = 0) -> MeasuredPeak | None:  # noqa: ARG002 - see `MemoryProbe`
        """None: not measured."""
        return None

    def release(self) -> None:
        """Collect garbage and empty torch's cache."""
        gc.collect()
        torch.mps.empty_cache()


def reusable_bytes(stats: Mapping[str, int]) -> int:
    """Bytes that torch's allocator holds and can reuse, by its statistics."""
    names = ("reserved_bytes", "allocated_bytes", "inactive_split_bytes")
    reserved, allocated, split = (stats.get(f"{name}.all.current", 0) for name in names)
    return max(0, reserved - allocated - split)


def device_uuid(ordinal: int, nvml: Nvml) -> str | None:
    """The UUID of a CUDA ordinal by which the driver knows it; None where neither driver nor CUDA tells it.

    A MIG instance has its own UUID: the one in CUDA_VISIBLE_DEVICES, because CUDA may tell that of its card.
    """
    shown = cuda_visible_uuid(ordinal, devices=nvml.devices())
    if shown is not None and shown.startswith("MIG-"):
        return shown
    try:
        told = str(torch.cuda.get_device_properties(ordinal).uuid)
    except (AttributeError, UnicodeDecodeError):  # a torch without UUIDs, or properties that are not UTF-8
        return shown
    if told.startswith(("GPU-", "MIG-")):
        return told
    named = (f"GPU-{told}", f"MIG-{told}")
    return next((uuid for uuid in named if nvml.read(uuid).state in KNOWN_TO_DRIVER), shown or named[0])


def synchronized_seconds(device: torch.device) -> float:
    """Clock reading in seconds, after the device has finished all queued work."""
    synchronize(device)
    return time.perf_counter()
