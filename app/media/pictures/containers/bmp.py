"""BMP: reads the size and an embedded ICC profile. The file itself is left as it is."""

import struct
from typing import Final

from app.media.pictures.containers.contents import Contents
from app.media.pictures.rejection import ImageRejected, unsupported

_FILE_HEADER: Final = 14
_CORE, _INFO, _V5 = 12, 40, 124
_READABLE: Final = {0: "none", 1: "RLE8", 2: "RLE4", 3: "bit fields", 6: "bit fields"}
_EMBEDDED: Final = b"DEBM"
MAX_PROFILE_BYTES: Final = 4 * 2**20


def contents(data: bytes) -> Contents:
    """As `take_apart`."""
    header = data[_FILE_HEADER:]
    length = int.from_bytes(header[:4], "little")
    if len(header) < max(length, _CORE) or (length != _CORE and not _INFO <= length <= 1024):
        raise ImageRejected("not_an_image", "the file begins like a BMP, but has no BMP header")
    if length == _CORE:
        width, height = struct.unpack_from("<HH", header, 4)
    else:
        width, height = struct.unpack_from("<ii", header, 4)
        compression = int.from_bytes(header[16:20], "little")
        if compression not in _READABLE:
            raise unsupported(f"is a BMP with compression {compression}")
    size = abs(width), abs(height)
    profile = None
    if length >= _V5 and header[56:60] == _EMBEDDED:
        at, count = struct.unpack_from("<II", header, 112)
        profile = header[at : at + count] if 0 < count <= MAX_PROFILE_BYTES else None
    ignored = ("colour profile",) if profile is None and header[56:60] == _EMBEDDED and length >= _V5 else ()
    return Contents("BMP", data, size, profile=profile, ignored=ignored)
