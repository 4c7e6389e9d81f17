"""Makes a file in a process of its own, whose memory, processor time and file size are limited.

A long video takes minutes of one processor; the process that answers requests must stay responsive, and
survive whatever an encoder does. `python -m app.media.formats.apart FORMAT VIDEO OUT MEMORY_BYTES CPU_SECONDS
FILE_BYTES` writes one line of JSON. It ends when its standard input does, which is when its parent ends.
"""

import errno
import json
import logging
import os
import resource
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any, Final

log = logging.getLogger(__name__)

MEMORY_BYTES: Final = 2 * 2**30
CPU_SECONDS: Final = 180
WALL_SECONDS: Final = 600.0
NO_SPACE: Final = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
NICENESS: Final = 10
# The statuses of a process that had no processor time left, or whose encoder got no memory.
OUT_OF_LIMITS: Final = (-signal.SIGXCPU, -signal.SIGSEGV, -signal.SIGABRT)


class ConversionFailed(Exception):
    """The file cannot be made: the video is missing or damaged."""


class ConversionTooLarge(ConversionFailed):
    """The file needs more memory or processor time than one request may take."""


class ConversionInterrupted(ConversionFailed):
    """Neither the video nor the limits are the cause: another attempt may succeed."""


class ConversionDiskFull(ConversionFailed):
    """The disk has too little space for the file."""


def convert_apart(
    name: str, video: Path, out: Path, *, file_bytes: int, cpu_seconds: int = CPU_SECONDS
) -> int:
    """Make `out` of `video`, of at most `file_bytes`; returns the number of frames.

    Raises `ConversionFailed` and its three kinds; `out` may then be there in part.
    """
    limits = (MEMORY_BYTES, cpu_seconds, file_bytes)
    command = [sys.executable, "-m", "app.media.formats.apart", name, str(video), str(out)]
    held, holds = os.pipe()
    try:
        done = subprocess.run(
            [*command, *map(str, limits)],
            stdin=held,
            capture_output=True,
            timeout=WALL_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        # Its processor time is limited apart, so the machine is busy.
        raise ConversionInterrupted(f"making the file took more than {WALL_SECONDS:.0f} seconds") from None
    finally:
        os.close(held)
        os.close(holds)
    told = _told(done.stdout)
    if "frames" in told:
        return int(told["frames"])
    if told.get("fault") == "disk":
        raise ConversionDiskFull(f"the file would be larger than the {file_bytes:,} bytes that are left")
    if told.get("fault") == "damaged":
        raise ConversionFailed(str(told["reason"]))
    last = done.stderr.decode("utf-8", "replace").strip().rpartition("\n")[2]
    reason = " ".join(str(told.get("reason") or last)[:500].split())
    log.warning("conversion_ended format=%s status=%d reason=%s", name, done.returncode, reason)
    if "fault" not in told and done.returncode not in OUT_OF_LIMITS and not last.startswith("MemoryError"):
        raise ConversionInterrupted(f"the process that made the file ended with status {done.returncode}")
    memory = f"{MEMORY_BYTES / 2**30:.0f} GiB of memory"
    raise ConversionTooLarge(f"it needs more than {cpu_seconds} seconds of processor time or {memory}")


def _told(output: bytes) -> dict[str, Any]:
    try:
        told: dict[str, Any] = json.loads(output)
    except ValueError:
        return {}
    return told


def main(name: str, video: Path, out: Path, *limits: int) -> None:
    """Make one file, and tell what became of it."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    os.nice(NICENESS)
    from app.media.formats.writers import WRITERS

    _limit(*limits)
    try:
        told: dict[str, Any] = {"frames": WRITERS[name](video, out)}
    except Exception as error:
        told = {"fault": _fault(error), "reason": str(error)}
    print(json.dumps(told))  # noqa: T201  (the answer to the process that asked)


def _end_with_parent() -> None:
    os.read(sys.stdin.fileno(), 1)  # nobody writes
    os._exit(1)


def _fault(error: Exception) -> str:
    import av

    if isinstance(error, OSError) and error.errno in NO_SPACE:
        return "disk"
    damaged = (FileNotFoundError, av.InvalidDataError, av.EOFError)
    # Encoders have many errors for too little memory.
    return "damaged" if isinstance(error, damaged) or type(error) is ValueError else "large"


def _limit(memory_bytes: int, cpu_seconds: int, file_bytes: int) -> None:
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    for kind, limit in (
        (resource.RLIMIT_AS, used + memory_bytes),
        (resource.RLIMIT_CPU, cpu_seconds),
        (resource.RLIMIT_FSIZE, file_bytes),
        (resource.RLIMIT_CORE, 0),
    ):
        _, hard = resource.getrlimit(kind)
        resource.setrlimit(kind, (limit if hard == resource.RLIM_INFINITY else min(limit, hard), hard))


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]), *map(int, sys.argv[4:]))
