"""Limits the number of parts in a PNG or JPEG file, counted without decoding any.

Both formats are lists of parts without a limit on their number, and a decoder spends time, and for some parts
memory, on each. 30 MB of empty PNG chunks take Pillow 20 seconds, and 30 MB of JPEG fill bytes take minutes.
Every 95-byte scan of a progressive JPEG passes over all 64 megapixels again (0.07 s). Real files have a few
thousand parts at most (libpng writes 8 KiB a chunk) and about ten scans.
"""

import re
from typing import Final

MAX_PARTS: Final = 16_384
MAX_SCANS: Final = 64

_PNG = b"\x89PNG\r\n\x1a\n"
_JPEG = b"\xff\xd8\xff"
_START_OF_SCAN, _END_OF_IMAGE = 0xDA, 0xD9
_STANDALONE = frozenset({0x01, *range(0xD0, 0xDA)})  # markers without a length field
# What ends a scan: within one, 0xFF is followed by 0, a restart marker or another 0xFF.
_AFTER_SCAN = re.compile(rb"\xff[^\x00\xff\xd0-\xd7]")


def excess_parts(data: bytes) -> str | None:
    """The limit that the file exceeds, as text; None if it may be decoded."""
    if data.startswith(_PNG):
        return _png(data)
    if data.startswith(_JPEG):
        return _jpeg(data)
    return None


def _png(data: bytes) -> str | None:
    at = len(_PNG)
    for _ in range(MAX_PARTS):
        if at + 8 > len(data):
            return None
        at += 12 + int.from_bytes(data[at : at + 4], "big")
    return f"more than {MAX_PARTS:,} chunks"


def _jpeg(data: bytes) -> str | None:
    """Counts up to the end of the image: phones append videos and further images to their photos."""
    at, scans = 2, 0
    for _ in range(MAX_PARTS):
        if at + 4 > len(data) or (data[at] == 0xFF and data[at + 1] == _END_OF_IMAGE):
            return None
        if data[at] != 0xFF or data[at + 1] == 0xFF:
            at += 1  # a stray byte or a fill byte: a decoder reads each
        elif data[at + 1] == 0 or data[at + 1] in _STANDALONE:
            at += 2
        else:
            is_scan = data[at + 1] == _START_OF_SCAN
            at += 2 + int.from_bytes(data[at + 2 : at + 4], "big")
            if is_scan:
                scans += 1
                if scans > MAX_SCANS:
                    return f"more than {MAX_SCANS} scans"
                found = _AFTER_SCAN.search(data, at)
                if found is None:
                    return None
                at = found.start()
    return f"more than {MAX_PARTS:,} segments and fill bytes around its scans"
