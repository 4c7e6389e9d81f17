"""Checks of the data folder, the database, the port and the limits of this process. Imports no torch."""

import fcntl
import json
import resource
import shutil
import socket
from collections.abc import Iterator
from pathlib import Path

import psutil

from adaptive.device.host import read_host
from app.config import ConfigError, Settings
from app.doctor.findings import Finding, note, ok, wrong
from app.units import format_bytes

LOW_DISK_BYTES = 5 * 2**30
LOW_MEMORY_BYTES = 2 * 2**30
# Open files of the API process: 4000 connections and its other files.
OPEN_FILES = 4096 + 256
NETWORK_FILE_SYSTEMS = frozenset({"nfs", "nfs4", "cifs", "smb3", "smbfs", "9p", "fuse.sshfs", "fuse.s3fs"})


def disk(settings: Settings) -> Finding:
    """Check that the data folder is writable and its disk has free space."""
    folder = settings.data_dir
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / ".doctor"
        probe.write_bytes(b"x")
        probe.unlink()
    except OSError as error:
        return wrong("disk", str(error), "Set FRAMEFIT_DATA_DIR to a writable folder.")
    free = shutil.disk_usage(folder).free
    detail = f"{folder}: {format_bytes(free)} free"
    if free < LOW_DISK_BYTES:
        return wrong("disk", detail, "Videos and models need space: free some, or set FRAMEFIT_DATA_DIR.")
    system = _file_system(folder)
    if settings.database_url is None and system in NETWORK_FILE_SYSTEMS:
        advice = (
            f"SQLite's locks are unreliable on {system}: use a local folder or set FRAMEFIT_DATABASE_URL."
        )
        return note("disk", f"{detail}, on {system}", advice)
    return ok("disk", detail)


def _file_system(folder: Path) -> str:
    """Return the type of the folder's file system."""
    place = folder.resolve()
    holding = [one for one in psutil.disk_partitions(all=True) if place.is_relative_to(one.mountpoint)]
    return max(holding, key=lambda one: len(one.mountpoint)).fstype if holding else ""


def database(settings: Settings) -> Finding:
    """Check the database's schema revision and its write lock."""
    from app.store import StoreError
    from app.store.upkeep.health import HEAD_REVISION, inspect_database

    try:
        revision, counts = inspect_database(settings.resolved_database_url)
    except StoreError as error:
        advice = "Another process may hold the database's lock: end it, or check FRAMEFIT_DATABASE_URL."
        return wrong("database", str(error), advice)
    except (ConfigError, OSError, ValueError) as error:
        return wrong("database", str(error), "Check FRAMEFIT_DATABASE_URL and its access rights.")
    if revision is None:
        return ok("database", "none yet: the first start creates it")
    if revision > HEAD_REVISION:
        advice = f"Install a newer Framefit: this version supports schemas up to {HEAD_REVISION}."
        return wrong("database", f"schema {revision} belongs to a newer Framefit", advice)
    jobs = ", ".join(f"{count} {status}" for status, count in counts.items())
    upgrade = "" if revision == HEAD_REVISION else f", upgraded to {HEAD_REVISION} at the next start"
    return ok("database", f"schema {revision}{upgrade}{': ' if jobs else ''}{jobs}")


def port(settings: Settings) -> Finding:
    """Check that the service can listen on its port or already runs."""
    address = f"{settings.host}:{settings.port}"
    running = _running_service(settings.data_dir)
    if running is not None:
        return ok("port", f"a service uses this data folder: {running}")
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((settings.host, settings.port))
        except OSError as error:
            advice = "The port is taken or the address is not local: set FRAMEFIT_PORT or FRAMEFIT_HOST."
            return wrong("port", f"cannot listen on {address}: {error.strerror}", advice)
    return ok("port", f"{address} is free")


def _running_service(data_dir: Path) -> str | None:
    """Return the URL of the service that holds the folder's lock, or None."""
    try:
        with (data_dir / "service.lock").open("r+") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        pass
    except OSError:
        return None
    else:
        return None
    try:
        return str(json.loads((data_dir / "service.json").read_text())["url"])
    except (OSError, ValueError, KeyError):
        return "still starting"


def limits(settings: Settings) -> Iterator[Finding]:
    """Check the host memory available to this process and its limit of open files."""
    del settings
    memory = read_host()
    physical = psutil.virtual_memory().total
    bound = "" if memory.total_bytes >= physical else f" (a limit; the machine has {format_bytes(physical)})"
    detail = f"{format_bytes(memory.free_bytes)} of {format_bytes(memory.total_bytes)} free{bound}"
    if memory.free_bytes < LOW_MEMORY_BYTES:
        advice = "Models load through host memory: end other programs, or raise the memory limit."
        yield note("memory", detail, advice)
    else:
        yield ok("memory", detail)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if resource.RLIM_INFINITY != soft < OPEN_FILES:
        most = "no limit" if hard == resource.RLIM_INFINITY else hard
        advice = (
            f"Enough for a few hundred clients. For thousands: ulimit -n {OPEN_FILES} (hard limit: {most})."
        )
        yield note("files", f"at most {soft} open files", advice)
    else:
        yield ok("files", "thousands of open files allowed")
