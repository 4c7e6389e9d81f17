"""Reads how many processes the kernel's out-of-memory killer has ended, of this process's control group.

Linux counts them in `memory.events` (cgroup v2) or `memory.oom_control` (v1) of the group, and in
`/proc/vmstat` for the whole system, which is read where the group has no such file. A count is compared only
with earlier ones of the same place.
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

BOOT_ID = "proc/sys/kernel/random/boot_id"


@dataclass(frozen=True, slots=True)
class OomKills:
    """A count, and the control group and boot that it belongs to."""

    place: str
    count: int


def read_oom_kills(root: Path = Path("/")) -> OomKills | None:
    """Return the count of now; None where the system has none. `root` holds `proc` and `sys`."""
    for path in _counters(root):
        try:
            count, folder = _count_in(path.read_text()), path.parent.stat()
        except (OSError, ValueError):
            continue
        if count is not None:
            # A new group of the same name is another directory.
            return OomKills(f"{_boot_of(root)}/{folder.st_dev}/{folder.st_ino}", count)
    return None


def _count_in(text: str) -> int | None:
    for line in text.splitlines():
        name, _, value = line.partition(" ")
        if name == "oom_kill":
            return int(value)
    return None


def _counters(root: Path) -> Iterator[Path]:
    """Yield files that may have the count, the one of the smallest group first."""
    groups, mount = root / "proc/self/cgroup", root / "sys/fs/cgroup"
    try:
        lines = groups.read_text().splitlines()
    except (OSError, ValueError):
        lines = []
    for line in lines:
        _, controllers, path = [*line.split(":", 2), "", ""][:3]
        if "memory" in controllers.split(","):
            folders, name = [mount / "memory"], "memory.oom_control"
        elif not controllers:
            folders, name = [mount, mount / "unified"], "memory.events"
        else:
            continue
        for folder in folders:  # a container may see its group's path, but its group alone is mounted
            yield Path(os.path.normpath(folder / path.lstrip("/"))) / name
            yield folder / name
    yield root / "proc/vmstat"


def _boot_of(root: Path) -> str:
    try:
        return (root / BOOT_ID).read_text().strip()
    except OSError:
        return "unknown-boot"
