"""Reads the orientation in EXIF data, whatever else is in them."""

import struct
from typing import Final

_ORIENTATION: Final = 0x0112
_CODES: Final = {1: "B", 3: "H", 4: "I"}  # a byte, as some write it; SHORT, as the standard says; LONG
_INLINE_BYTES: Final = 4
_MAX_ENTRIES: Final = 1024


def orientation(exif: bytes | None) -> int:
    """The orientation, 1 to 8; 1 (upright) if the data do not say it or cannot be read."""
    if exif is None:
        return 1
    tiff = exif[6:] if exif[:6] == b"Exif\0\0" else exif
    order = {b"II*\0": "<", b"MM\0*": ">"}.get(tiff[:4])
    if order is None:
        return 1
    try:
        (at,) = struct.unpack_from(f"{order}I", tiff, 4)
        (count,) = struct.unpack_from(f"{order}H", tiff, at)
        for number in range(min(count, _MAX_ENTRIES)):
            entry = at + 2 + 12 * number
            tag, kind, values = struct.unpack_from(f"{order}HHI", tiff, entry)
            if tag == _ORIENTATION and kind in _CODES:
                form = struct.Struct(order + _CODES[kind])
                if not 1 <= values <= _INLINE_BYTES // form.size:
                    return 1
                (value,) = form.unpack_from(tiff, entry + 8)
                return int(value) if 1 <= value <= 8 else 1
    except struct.error:
        return 1
    return 1
