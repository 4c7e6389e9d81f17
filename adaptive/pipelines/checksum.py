"""The checksum of a safetensors file, inside the file: flipped bytes are noticed when it is read.

It is the SHA-256 of the whole file with zeros in the checksum's own place, so it covers names, shapes and
metadata, too. A file without a checksum, written by an earlier version, is accepted.
"""

import hashlib
import re
from pathlib import Path
from typing import BinaryIO

FIELD = "sha256"
BLANK = "0" * 64
MAX_HEADER_BYTES = 100_000_000  # the format's own limit
_PLACE = re.compile(rb'"sha256": ?"([0-9a-f]{64})"')
_PART_BYTES = 2**20


class WrongChecksum(ValueError):
    """The file's bytes are not those that were written."""


def seal(file: BinaryIO) -> None:
    """Put the checksum in place of `BLANK`, which is the metadata's value of `FIELD`.

    The file must be open for reading and writing.
    """
    place, _ = _find(file) or (None, b"")
    if place is None:
        raise ValueError(f"the header has no field {FIELD}")
    digest = _digest(file, place)
    file.seek(place)
    file.write(digest.encode())


def verify(path: Path) -> None:
    """Raise `WrongChecksum` if the file has a checksum that is not that of its bytes."""
    with path.open("rb") as file:
        found = _find(file)
        if found is None:
            return
        place, written = found
        if _digest(file, place).encode() != written:
            raise WrongChecksum(f"{path.name} is damaged: its bytes do not match its checksum")


def _find(file: BinaryIO) -> tuple[int, bytes] | None:
    """The position and value of the checksum, or None if the header has none."""
    file.seek(0)
    length = int.from_bytes(file.read(8), "little")
    match = _PLACE.search(file.read(min(length, MAX_HEADER_BYTES)))
    return None if match is None else (8 + match.start(1), match[1])


def _digest(file: BinaryIO, place: int) -> str:
    digest = hashlib.sha256()
    file.seek(0)
    digest.update(file.read(place))
    digest.update(BLANK.encode())
    file.seek(place + len(BLANK))
    while part := file.read(_PART_BYTES):
        digest.update(part)
    return digest.hexdigest()
