"""BMP: reads the size and an embedded ICC profile, and gives the decoder pixels without runs."""

import struct
from typing import Final

from app.media.pictures.containers.bmp_runs import expanded
from app.media.pictures.containers.contents import Contents
from app.media.pictures.rejection import ImageRejected, unsupported

_FILE_HEADER: Final = 14
_CORE, _INFO, _V5 = 12, 40, 124
_BITS_OF_RUNS: Final = {1: 8, 2: 4}
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


def without_runs(data: bytes) -> bytes:
    """A BMP whose size was checked, with one byte a pixel if it was coded as runs. Raises `ImageRejected`."""
    length = int.from_bytes(data[14:18], "little")
    if length == _CORE:
        return data
    bits, compression = struct.unpack_from("<HI", data, 28)
    if compression not in _BITS_OF_RUNS:
        return data
    if bits != _BITS_OF_RUNS[compression]:
        raise unsupported(f"is a BMP of {bits} bits with compression {_READABLE[compression]}")
    width, height = struct.unpack_from("<ii", data, 18)
    (begin,) = struct.unpack_from("<I", data, 10)
    colours = min(struct.unpack_from("<I", data, 46)[0] or 1 << bits, 1 << bits)
    pixels = expanded(data, begin, (abs(width), abs(height)), bits)
    palette = data[_FILE_HEADER + length : _FILE_HEADER + length + 4 * colours]
    head = bytearray(data[: _FILE_HEADER + length])
    struct.pack_into("<I", head, 10, len(head) + len(palette))
    struct.pack_into("<HII", head, 28, 8, 0, 0)
    struct.pack_into("<I", head, 46, colours)
    return bytes(head) + palette + pixels
