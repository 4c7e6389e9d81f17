"""The data folder at the start of a process: it is made, tried and locked. Says in one line what is wrong."""

import fcntl
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from app.artifacts.data_folder import BACK

LOCK_FILE = "service.lock"
SET = "set FRAMEFIT_DATA_DIR to another folder"


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
        who = f"user {os.geteuid()}"
        return f"may not be written to by {who}", f"let {who} write to it (chown), or {SET}"
    return f"cannot be written to: {error.strerror}", SET
