"""Finds clips that were cut off or overwritten, from what their container says of its own parts.

Demuxers skip damage, and end a file that was cut off like one that is whole: frames are missing then, and no
error says so. Containers state the length of their parts, so walking over the parts shows it. Must not decode
anything.
"""

from pathlib import Path
from typing import BinaryIO, Final

_MAX_PARTS: Final = 2_000_000
_BOXES: Final = frozenset({b"ftyp", b"moov", b"mdat", b"free", b"skip", b"wide", b"styp", b"pnot"})
_NEEDED_BOXES: Final = frozenset({b"moov", b"mdat", b"moof"})
_EBML: Final = b"\x1a\x45\xdf\xa3"
# Matroska's elements whose children are walked.
_SEGMENT: Final = 0x18538067
_CLUSTER: Final = 0x1F43B675
_UNKNOWN_LENGTH: Final = -1


def damage(path: Path) -> str | None:
    """What is wrong with the outer structure of the file; None if it is whole, or of an unknown container."""
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(12)
        file.seek(0)
        if start[4:8] in _BOXES:
            return _of_boxes(file, size)
        if start.startswith(_EBML):
            return _of_matroska(file, size)
        if start.startswith(b"RIFF"):
            return _missing(_end_of_riff(file, size), size)
        if start.startswith(b"GIF8"):
            return _of_gif(file)
    return None


def _missing(end: int, size: int) -> str | None:
    return f"{end - size:,} bytes or more are missing there" if end > size else None


def _of_boxes(file: BinaryIO, size: int) -> str | None:
    """MP4 and QuickTime: boxes of a length and a name, one after another. Other programs append to them."""
    at = 0
    for _ in range(_MAX_PARTS):
        if at >= size:
            break
        file.seek(at)
        head = file.read(16)
        length = int.from_bytes(head[:4], "big")
        if length == 1:
            length = int.from_bytes(head[8:16], "big")
        if length < 8:  # 0: until the end of the file
            break
        at += length
        if at > size and head[4:8] in _NEEDED_BOXES:
            return _missing(at, size)
    return None


def _of_matroska(file: BinaryIO, size: int) -> str | None:
    """Matroska and WebM: elements of a name and a length; a live recording leaves lengths unknown."""
    at, end = 0, size
    for _ in range(_MAX_PARTS):
        if at >= end:
            break
        file.seek(at)
        head = file.read(12)
        name_bytes = 9 - head[0].bit_length()
        length, length_bytes = _ebml_length(head[name_bytes:])
        if name_bytes > 4 or not length_bytes:
            missing = _missing(at + name_bytes + 1, size) if name_bytes <= 4 else None
            return missing or f"damaged at byte {at:,}"
        at += name_bytes + length_bytes
        name = int.from_bytes(head[:name_bytes], "big")
        is_parent = name in (_SEGMENT, _CLUSTER)
        if length == _UNKNOWN_LENGTH:
            if not is_parent:
                return f"damaged at byte {at:,}"
        elif at + length > size:
            return _missing(at + length, size)
        elif not is_parent:
            at += length
        elif name == _SEGMENT:  # what follows it is not the clip's
            end = at + length
    return None


def _ebml_length(data: bytes) -> tuple[int, int]:
    """A length, and how many bytes it has: the first one's leading zeros count the others; 0 if invalid."""
    if not data or not data[0]:
        return 0, 0
    count = 9 - data[0].bit_length()
    if len(data) < count:
        return 0, 0
    value = int.from_bytes(data[:count], "big") & ((1 << 7 * count) - 1)
    return (_UNKNOWN_LENGTH if value == (1 << 7 * count) - 1 else value), count


def _end_of_riff(file: BinaryIO, size: int) -> int:
    """AVI: chunks `RIFF` of at most 1 GB, one after another. A recorder that was killed leaves length 0."""
    at = 0
    for _ in range(_MAX_PARTS):
        file.seek(at)
        head = file.read(8)
        length = int.from_bytes(head[4:8], "little")
        if at >= size or head[:4] != b"RIFF" or not length:
            break
        at += 8 + length + length % 2
    return at


def _of_gif(file: BinaryIO) -> str | None:
    """GIF: blocks, then a trailer."""
    head = file.read(13)
    if len(head) == 13 and head[10] & 0x80:
        file.seek(3 << ((head[10] & 7) + 1), 1)
    while kind := file.read(1):
        if kind == b"\x3b":
            return None
        if kind == b"\x2c":  # a picture
            head = file.read(9)
            if len(head) == 9 and head[8] & 0x80:
                file.seek(3 << ((head[8] & 7) + 1), 1)
        elif kind != b"\x21":
            return f"damaged at byte {file.tell():,}"
        file.seek(1, 1)
        while (length := file.read(1)) not in (b"", b"\0"):
            file.seek(length[0], 1)
    return "its last part is missing"
