"""Host memory that this process can use: the least of physical memory, cgroup limits and RLIMIT_AS.

Owns reading /proc and /sys/fs/cgroup, the settings of the C library's heap, and garbage collection. It does
not know torch or decodes.
"""

import ctypes
import gc
import resource
from pathlib import Path

import psutil

from adaptive.types import MeasuredPeak, MemoryReading

CGROUP_ROOT = Path("/sys/fs/cgroup")
# malloc.h of glibc
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
MAPPED_BYTES = 256 * 2**10
UNLIMITED = 2**60  # cgroup v1 writes "no limit" as a page-rounded 2**63


def read_host() -> MemoryReading:
    """Read host memory; `free_bytes` is what a new allocation of this process can get."""
    memory = psutil.virtual_memory()
    process = psutil.Process().memory_info()
    total, free = memory.total, memory.available
    for limit, used in [*_cgroup_limits(), *_address_space(process.vms)]:
        total = min(total, limit)
        free = min(free, max(0, limit - used))
    other = max(0, total - free - process.rss)  # under a limit, `total` and `free` are the limit's
    return MemoryReading("cpu", free, total, 0, process.rss, other, "host")


def limit_heap_growth() -> None:
    """Make the C library map each tensor of `MAPPED_BYTES` or more separately, so that freeing returns it.

    By default glibc raises that size up to 32 MiB over time, and blocks of many sizes fragment the heap. The
    resident set of one streamed decode then grew to 2.7 times its live tensors, against 1.5 times with this.
    """
    set_option = getattr(ctypes.CDLL(None), "mallopt", None)  # glibc only
    if set_option is not None:
        set_option(M_MMAP_THRESHOLD, MAPPED_BYTES)
        set_option(M_TRIM_THRESHOLD, MAPPED_BYTES)


def trim_heap(generation: int = 2) -> None:
    """Collect garbage up to `generation`, and return the C library's free heap pages to the system."""
    gc.collect(generation)
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc only
    if trim is not None:
        trim(0)


def freeze_garbage_collection() -> None:
    """Collect garbage, then exclude all live objects from later collections, until `gc.unfreeze`.

    Every decode collects garbage. A full collection takes 0.4 s for the 700,000 or so objects of torch,
    diffusers and transformers.
    """
    gc.collect()
    gc.freeze()


class ResidentPeak:
    """Peak growth of this process' resident set since the last reset (Linux)."""

    def __init__(self) -> None:
        self._base_bytes = 0
        self._works = False
        self.reset()

    def reset(self) -> None:
        """Measure from the current resident set on."""
        try:
            Path("/proc/self/clear_refs").write_text("5")  # proc(5): resets VmHWM to the current resident set
        except OSError:
            self._works = False
            return
        self._works = True
        self._base_bytes = _status_bytes("VmRSS")

    def growth(self, held_bytes: int = 0) -> MeasuredPeak | None:
        """Peak growth since the reset; None where the kernel does not allow the measurement.

        Memory that is still resident after the heap has returned its free pages, beyond the caller's
        `held_bytes`, belongs to other parts of this process: a video encoder's frames, code of libraries. It
        is reported as outside bytes. The kernel does not separate used memory from what the heap keeps, so
        fragmentation counts as allocated.
        """
        if not self._works:
            return None
        grown = max(0, _status_bytes("VmHWM") - self._base_bytes)
        trim_heap(1)  # a decode's garbage is young; a full collection takes 0.4 s
        left = max(0, _status_bytes("VmRSS") - self._base_bytes - held_bytes)
        return MeasuredPeak(max(0, grown - left), outside_bytes=left)


def _status_bytes(field: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) * 1024
    return 0


def _address_space(used_bytes: int) -> list[tuple[int, int]]:
    soft, _ = resource.getrlimit(resource.RLIMIT_AS)
    return [] if soft == resource.RLIM_INFINITY else [(soft, used_bytes)]


def _cgroup_limits() -> list[tuple[int, int]]:
    """(limit, used) bytes of this process' memory cgroup and each of its parents.

    Page cache that the kernel can drop does not count as used.
    """
    found = []
    for folder, limit_name, usage_name, cache_name in _cgroup_folders():
        limit, usage = _number(folder / limit_name), _number(folder / usage_name)
        if limit is not None and usage is not None and limit < UNLIMITED:
            found.append((limit, max(0, usage - _stat(folder / "memory.stat", cache_name))))
    return found


def _cgroup_folders() -> list[tuple[Path, str, str, str]]:
    try:
        lines = Path("/proc/self/cgroup").read_text().splitlines()
    except OSError:
        return []
    folders = []
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if not controllers:
            root, names = CGROUP_ROOT, ("memory.max", "memory.current", "inactive_file")
        elif "memory" in controllers.split(","):
            root = CGROUP_ROOT / "memory"
            names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
        else:
            continue
        own = root / path.lstrip("/")
        chain = [own, *own.parents]
        folders += [(folder, *names) for folder in chain if folder == root or root in folder.parents]
    return folders


def _number(path: Path) -> int | None:
    try:
        text = path.read_text().strip()
    except OSError:
        return None
    return int(text) if text.isdecimal() else None


def _stat(path: Path, name: str) -> int:
    try:
        lines = path.read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in lines if line.split()[0] == name), 0)
