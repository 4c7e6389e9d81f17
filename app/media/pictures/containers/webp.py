"""WebP: keeps the chunks of the picture, reads orientation and ICC profile from the others."""

import struct
from collections.abc import Iterator
from typing import Final

from app.media.pictures.containers import exif
from app.media.pictures.containers.contents import Contents
from app.media.pictures.image_structure import MAX_PARTS
from app.media.pictures.rejection import damaged, too_complex

_PICTURE: Final = frozenset({b"VP8 ", b"VP8L", b"VP8X", b"ALPH", b"ANIM", b"ANMF"})
_ALPHA, _ANIMATION = 0x10, 0x02
MAX_PROFILE_BYTES: Final = 4 * 2**20


def contents(data: bytes) -> Contents:
    """As `take_apart`."""
    kept, size = list[bytes](), None
    read: dict[bytes, bytes] = {}
    for kind, chunk in _chunks(data):
        body = chunk[8:]
        if kind in _PICTURE:
            size = size or _size(kind, body)
            if kind == b"VP8X":  # its other flags announce metadata that are left out
                chunk = chunk[:8] + bytes([body[0] & (_ALPHA | _ANIMATION)]) + body[1:]
            kept.append(chunk + b"\0" * (len(body) % 2))
        elif kind in (b"ICCP", b"EXIF"):
            read.setdefault(kind, body)
    if size is None:
        raise damaged("it has no size")
    whole = b"WEBP" + b"".join(kept)
    profile = read.get(b"ICCP")
    too_long = profile is not None and len(profile) > MAX_PROFILE_BYTES
    return Contents(
        "WEBP",
        b"RIFF" + struct.pack("<I", len(whole)) + whole,
        size,
        orientation=exif.orientation(read.get(b"EXIF")),
        profile=None if too_long else profile,
        ignored=("colour profile",) if too_long else (),
    )


def _chunks(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """The chunks with their headers; the last one may be cut, and keeps the length that it claims."""
    claimed = 8 + int.from_bytes(data[4:8], "little")
    at, end = 12, claimed if 20 < claimed < len(data) else len(data)
    for _ in range(MAX_PARTS):
        if at + 8 > end:
            return
        size = int.from_bytes(data[at + 4 : at + 8], "little")
        yield data[at : at + 4], data[at : min(end, at + 8 + size)]
        at += 8 + size + size % 2
    raise too_complex(f"more than {MAX_PARTS:,} chunks")


def _size(kind: bytes, body: bytes) -> tuple[int, int] | None:
    """The size of the canvas. The decoder allocates it when it opens the file."""
    if kind == b"VP8X" and len(body) >= 10:
        return int.from_bytes(body[4:7], "little") + 1, int.from_bytes(body[7:10], "little") + 1
    if kind == b"VP8L" and len(body) >= 5:  # a signature byte, then 14 bits each, less one
        bits = int.from_bytes(body[1:5], "little")
        return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    if kind == b"VP8 " and len(body) >= 10:  # after tag and start code, 14 bits each and 2 of scaling
        width, height = (int.from_bytes(body[at : at + 2], "little") & 0x3FFF for at in (6, 8))
        return width, height
    return None
