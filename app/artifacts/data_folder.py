"""Whether the data folder is still the one of the start and can be written to.

A process keeps files of a removed folder open and goes on writing to them, and a folder that was removed and
made again looks the same by its name. So the folder is known by its number on its device.
"""

import errno
import os
from pathlib import Path

FULL_BYTES = 4 * 2**20
BACK = "put it back, or restart the service"


class WatchedPath:
    """A folder or file that must stay what it was when it was first seen."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._identity: tuple[int, int] | None = None
        self.fault()

    @property
    def is_known(self) -> bool:
        """Whether it has been seen."""
        return self._identity is not None

    def fault(self) -> str | None:
        """Return what has happened to it since then, or None."""
        try:
            found = self.path.stat()
        except (FileNotFoundError, NotADirectoryError):
            return None if self._identity is None else f"was removed while the service runs: {BACK}"
        except OSError as error:
            return f"cannot be reached: {error.strerror}"
        identity = (found.st_dev, found.st_ino)
        if self._identity is None:
            self._identity = identity
        if self._identity != identity:
            return f"was replaced by another while the service runs: {BACK}"
        return None


class DataFolder(WatchedPath):
    """The data folder."""

    def absence(self) -> str | None:
        """Return why nothing can be read from it now, or None."""
        return super().fault()

    def fault(self) -> str | None:
        """Return why nothing can be stored in it now, or None."""
        fault = super().fault()
        if fault is not None or self._identity is None:
            return fault
        if not os.access(self.path, os.W_OK | os.X_OK, effective_ids=True):
            return f"cannot be written to: {self._refusal()}"
        try:
            disk = os.statvfs(self.path)
        except OSError as error:
            return f"cannot be reached: {error.strerror}"
        free_bytes = disk.f_bavail * disk.f_frsize
        if disk.f_blocks and free_bytes < FULL_BYTES:  # some file systems do not count blocks
            return f"is on a full disk: {free_bytes} bytes are free, {FULL_BYTES} are needed: free some"
        return None

    def _refusal(self) -> str:
        read_only = os.statvfs(self.path).f_flag & os.ST_RDONLY
        return os.strerror(errno.EROFS if read_only else errno.EACCES)
