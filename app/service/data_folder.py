"""The data folder at the start of a process: it is made, tried and locked. Says in one line what is wrong."""

import fcntl
import os
import shlex
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from app.artifacts.data_folder import BACK

LOCK_FILE = "service.lock"
SET = "set FRAMEFIT_DATA_DIR to another folder"
ALL = os.R_OK | os.W_OK
# What a service of another user may have left. The database says itself what is wrong with its file.
OWN = {
    LOCK_FILE: ALL,
    "instance": os.R_OK,
    "last_run.json": os.R_OK,
    "worker_ends.json": os.R_OK,
    "log-level": os.R_OK,
    "jobs": ALL | os.X_OK,
    "pictures": ALL | os.X_OK,
    "pictures/new": ALL | os.X_OK,
    "profiles": ALL | os.X_OK,
    "models": os.R_OK | os.X_OK,
}


class DataFolderRefused(Exception):
    """The data folder cannot be used: which one, why, and what to do."""


class AlreadyRunning(DataFolderRefused):
    """Another service owns the data folder."""


def prepare_data_folder(folder: Path, *, may_make: bool = True) -> None:
    """Make the folder unless it exists, and check that this process can write to it.

    A child of a service must not make it: a folder that was removed may come back, and would find another in
    its place. It starts on a full disk, too: clients may still read. Raises `DataFolderRefused`.
    """
    if not may_make:
        if not folder.is_dir():
            raise _refused(folder, "was removed while the service runs", BACK)
        return
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as probe:
            probe.write(b"x")
    except OSError as error:
        raise _refused(folder, *_fault(folder, error)) from None
    for name, mode in OWN.items():
        path = folder / name
        if path.exists() and not os.access(path, mode, effective_ids=True):
            fault = f"is user {path.stat().st_uid}'s and may not be used by {_user()}"
            raise DataFolderRefused(
                f"the data folder {folder} cannot be used: {path} {fault}: {_chown(folder)}"
            )


@contextmanager
def locked_data_folder(folder: Path) -> Iterator[None]:
    """Lock the folder; the kernel releases the lock when this process ends, even if it is killed.

    Raises `AlreadyRunning`, and `DataFolderRefused` if the lock's file cannot be opened.
    """
    try:
        file = (folder / LOCK_FILE).open("w")
    except OSError as error:
        raise _refused(folder / LOCK_FILE, *_fault(folder, error)) from None
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise AlreadyRunning(
                f"another service uses {folder.absolute()}: stop it or set FRAMEFIT_DATA_DIR"
            ) from None
        yield


def _refused(path: Path, fault: str, remedy: str) -> DataFolderRefused:
    return DataFolderRefused(f"the data folder {path} cannot be used: it {fault}: {remedy}")


def _fault(folder: Path, error: OSError) -> tuple[str, str]:
    """Return what is wrong and what to do."""
    with suppress(OSError):
        if folder.is_symlink() and not folder.exists():
            return f"is a link to {folder.readlink()}, which does not exist", "make it, or remove the link"
    if isinstance(error, FileExistsError | NotADirectoryError):
        return "is a file, or lies below one", SET
    if isinstance(error, PermissionError):
        return f"may not be written to by {_user()}", _chown(folder)
    return f"cannot be written to: {error.strerror}", SET


def _user() -> str:
    return f"user {os.geteuid()}"


def _chown(folder: Path) -> str:
    """Return the command that gives the folder to this process's user."""
    owner, path = f"{os.geteuid()}:{os.getegid()}", shlex.quote(str(folder))
    make = "" if os.path.lexists(folder) else f"mkdir -p {path} && "
    return (
        f"as root, run {make}chown -R {owner} {path} (on a container's host, with the mounted path), or {SET}"
    )
