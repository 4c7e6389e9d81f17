"""The videos in other formats of all jobs, bounded together: those not used for the longest time go first.

They can be made again. Their time of access says when they were used; it is set, so that file systems which
do not keep it make no difference. Must not know what is inside the files.
"""

import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

MOST_BYTES = 4 * 2**30


class _File(NamedTuple):
    used_ns: int
    bytes: int
    path: Path


def mark_used(path: Path) -> os.stat_result:
    """Note that the file was asked for just now; returns what it is. Raises `OSError` if it is gone."""
    found = path.stat()
    os.utime(path, ns=(time.time_ns(), found.st_mtime_ns))
    return found


def keep_within(jobs_dir: Path, limit_bytes: int, *, keep: Path | None = None) -> int:
    """Delete converted files until all together have at most `limit_bytes`; returns how many it deleted.

    `keep` stays. Only names are removed: a response that is reading a file can finish.
    """
    files = sorted(_converted(jobs_dir))
    excess = sum(each.bytes for each in files) - limit_bytes
    deleted = 0
    for each in files:
        if excess <= 0:
            break
        if each.path != keep:
            each.path.unlink(missing_ok=True)
            excess -= each.bytes
            deleted += 1
    return deleted


def leave_free(jobs_dir: Path, wanted_bytes: int) -> int:
    """Delete converted files until the disk has `wanted_bytes` free, or none is left; as `keep_within`."""
    try:
        missing = wanted_bytes - shutil.disk_usage(jobs_dir).free
    except OSError:
        return 0
    if missing <= 0:
        return 0
    total = sum(each.bytes for each in _converted(jobs_dir))
    return keep_within(jobs_dir, max(0, total - missing))


def _converted(jobs_dir: Path) -> Iterator[_File]:
    for folder, _, names in os.walk(jobs_dir):
        for name in names:
            if name.startswith("video.") and name != "video.mp4" and not name.endswith(".part"):
                path = Path(folder, name)
                try:
                    found = path.stat()
                except FileNotFoundError:
                    continue
                yield _File(found.st_atime_ns, found.st_size, path)
