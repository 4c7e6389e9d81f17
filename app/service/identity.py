"""Which service this is: a random id in the data folder, confirmed by the database.

Workers are named `host/device/instance`. Two services on one host, or two containers with one host name, have
data folders of their own and thus different ids. A copied data folder carries the id of the original: while
the original runs, the copy gets a new id.

An id that was used before is this service's if the process that used it last has ended. On another machine
or in another container that cannot be seen; then it has ended if its workers are silent.
"""

import logging
import os
import secrets
import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil

from app.artifacts.whole_file import replace_text
from app.store import JobStore

log = logging.getLogger(__name__)

INSTANCE_FILE = "instance"
BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
PROCESS_IDS = Path("/proc/self/ns/pid")  # process ids mean something within such a namespace only
LOOK_SECONDS = 0.25


def enroll(store: JobStore, data_dir: Path, *, heartbeat_seconds: float) -> str:
    """Return this service's instance id, recorded in the data folder and the database.

    Waits for at most two heartbeats if it cannot see whether another service uses the same id.
    """
    path = data_dir / INSTANCE_FILE
    instance = path.read_bytes().decode("ascii", "replace").strip() if path.exists() else ""
    if not _is_id(instance) or _is_used(store, instance, heartbeat_seconds):
        if instance:
            fault = "a service with this folder's id runs already" if _is_id(instance) else "it was damaged"
            log.warning("instance_renewed path=%s reason=%s", path, fault)
        instance = secrets.token_hex(4)
        replace_text(path, instance + "\n")
    store.enroll(instance, host=socket.gethostname(), process=this_process())
    return instance


def _is_id(text: str) -> bool:
    return len(text) == 8 and all(letter in "0123456789abcdef" for letter in text)


def _is_used(store: JobStore, instance: str, heartbeat_seconds: float) -> bool:
    found = store.instance_of(instance)
    if found is None:
        return False
    process, first_beat = found
    alive = is_alive(process)
    if alive is not None:
        return alive
    return first_beat is not None and _beats_again(store, instance, first_beat, 2 * heartbeat_seconds)


def _beats_again(store: JobStore, instance: str, first_beat: float, seconds: float) -> bool:
    if store.time() - first_beat > seconds:
        return False
    return _wait_for(lambda: (store.instance_of(instance) or ("", None))[1] != first_beat, seconds)


def _wait_for(condition: Callable[[], bool], seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if condition():
            return True
        time.sleep(LOOK_SECONDS)
    return False


def this_process() -> str:
    """Name this process: where its id means something, the id, and when it started."""
    return f"{_place()}/{os.getpid()}/{_start_of(os.getpid())}"


def is_alive(process: str) -> bool | None:
    """Return whether the process that `this_process` named runs; None if that cannot be seen from here."""
    place, pid, started = process.rsplit("/", 2)
    if place != _place():
        return None
    return _start_of(int(pid)) == started


def _start_of(pid: int) -> str | None:
    """When a process started, the same text whenever it is asked for; None if there is no such process.

    Linux counts from the boot. Its times of day move when the clock is set.
    """
    try:
        if sys.platform != "linux":
            return f"{psutil.Process(pid).create_time():.2f}"
        # The name of the program, in brackets, may contain anything.
        return Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()[19]
    except (OSError, psutil.NoSuchProcess):
        return None


def _place() -> str:
    try:
        return f"{BOOT_ID.read_text().strip()}/{PROCESS_IDS.readlink()}"
    except OSError:  # not Linux: one machine, one namespace
        return socket.gethostname()
