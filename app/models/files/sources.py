"""Where the bytes of a file come from. A format's reader asks for ranges and does not know where they lie."""

from pathlib import Path
from typing import Protocol


class ByteSource(Protocol):
    """A file whose bytes can be read in any order."""

    name: str
    size: int

    def read(self, start: int, length: int) -> bytes:
        """The bytes from `start`, fewer than `length` at the end of the file. Raises `OSError`."""


class LocalFile:
    """A file on this machine. Raises `OSError` if it cannot be read."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.name = path.name
        self.size = path.stat().st_size

    def read(self, start: int, length: int) -> bytes:
        """As `ByteSource.read`."""
        with self.path.open("rb") as file:
            file.seek(start)
            return file.read(length)
