"""Who holds a GPU's memory, as far as the driver tells: our own process, others by name, and the rest.

Owns: the attribution. `own` is what a process says of itself (context and reserved bytes), because the
driver's process ids are those of the host and match nothing inside a container; there, others have no names.
Must not know: torch, jobs.
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import psutil

from adaptive.device.nvml import GpuInfo


@dataclass(frozen=True, slots=True)
class GpuMemoryUser:
    """A process with memory on the card; None where the driver, or the operating system, does not tell."""

    pid: int | None
    name: str | None
    used_bytes: int | None
    own: bool

    def as_json(self) -> dict[str, Any]:
        """JSON values."""
        return asdict(self)


def process_name(pid: int) -> str | None:
    """Name of a process of this host; None where there is none of that id."""
    try:
        return str(psutil.Process(pid).name())
    except (psutil.Error, ValueError):
        return None


def gpu_memory_users(
    gpu: GpuInfo, own_bytes_by_pid: dict[int, int], name_of: Callable[[int], str | None] = process_name
) -> list[GpuMemoryUser]:
    """The card's memory by process, largest first: ours as they report it, others as the driver does.

    What neither explains (the driver's own, processes it does not show) comes as one holder without a pid.
    """
    told = {process.pid: process.used_bytes for process in gpu.processes}
    same_ids = bool(own_bytes_by_pid.keys() & told.keys())
    mine = [GpuMemoryUser(pid, name_of(pid), used, own=True) for pid, used in own_bytes_by_pid.items()]
    # Where none of our ids is among the driver's, the others' ids are of another namespace, or ours hold
    # nothing: a name looked up here could be that of a stranger.
    named = same_ids or not own_bytes_by_pid
    others = [
        GpuMemoryUser(pid, name_of(pid) if named else None, used, own=False)
        for pid, used in told.items()
        if pid not in own_bytes_by_pid
    ]
    if not same_ids and own_bytes_by_pid:
        others = _without_own(others, sum(own_bytes_by_pid.values()))
    explained = sum(each.used_bytes or 0 for each in (*mine, *others))
    rest = gpu.used_bytes - explained
    if rest > 0:
        others.append(GpuMemoryUser(None, None, rest, own=False))
    return sorted((*mine, *others), key=lambda each: each.used_bytes or 0, reverse=True)


def _without_own(others: list[GpuMemoryUser], own_bytes: int) -> list[GpuMemoryUser]:
    """Leave out the one that is most likely ourselves under the host's process id: of about our size."""
    near = [each for each in others if each.used_bytes and abs(each.used_bytes - own_bytes) < own_bytes * 0.1]
    own = min(near, key=lambda each: abs((each.used_bytes or 0) - own_bytes), default=None)
    return [each for each in others if each is not own]
