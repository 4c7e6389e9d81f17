"""Which processes use a GPU's memory, as far as the driver reports: our own, others by name, and the rest.

Owns the attribution of memory to processes. Our processes report their own bytes (context and reserved),
because the driver's process ids are those of the host: inside a container they match no process, and other
processes have no names. This module does not know torch or jobs.
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import psutil

from adaptive.device.nvml import GpuInfo


@dataclass(frozen=True, slots=True)
class GpuMemoryUser:
    """A process with memory on the card. A field is None where the driver or the operating system does not
    report it.
    """

    pid: int | None
    name: str | None
    used_bytes: int | None
    own: bool

    def as_json(self) -> dict[str, Any]:
        """JSON values."""
        return asdict(self)


def process_name(pid: int) -> str | None:
    """Name of the process with this id in our own namespace, or None where there is none."""
    try:
        return str(psutil.Process(pid).name())
    except (psutil.Error, ValueError):
        return None


def gpu_memory_users(
    gpu: GpuInfo, own_bytes_by_pid: dict[int, int], name_of: Callable[[int], str | None] = process_name
) -> list[GpuMemoryUser]:
    """The card's memory by process, largest first.

    `own_bytes_by_pid` are the bytes that our processes report; the driver reports the others. Memory that
    neither explains (the driver's own, hidden processes) is one entry without a pid.
    """
    reported = {process.pid: process.used_bytes for process in gpu.processes}
    same_ids = bool(own_bytes_by_pid.keys() & reported.keys())
    mine = [GpuMemoryUser(pid, name_of(pid), used, own=True) for pid, used in own_bytes_by_pid.items()]
    # If the driver lists none of our ids, its ids belong to another namespace, or our processes use no
    # memory. A name looked up by such an id could be that of an unrelated process.
    named = same_ids or not own_bytes_by_pid
    others = [
        GpuMemoryUser(pid, name_of(pid) if named else None, used, own=False)
        for pid, used in reported.items()
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
    """Leave out the process that is most likely ours under the host's id.

    It is the one closest in size to `own_bytes`, within 10 %.
    """
    near = [each for each in others if each.used_bytes and abs(each.used_bytes - own_bytes) < own_bytes * 0.1]
    own = min(near, key=lambda each: abs((each.used_bytes or 0) - own_bytes), default=None)
    return [each for each in others if each is not own]
