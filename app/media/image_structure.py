"""How many pieces a picture's file is made of, counted without decoding any. Knows PNG and JPEG.

Both formats are lists of pieces without a limit on their number, and a decoder spends time, some of it
memory, on each: 30 MB of empty PNG chunks cost Pillow 20 seconds, 30 MB of JPEG fill bytes minutes, and every
95-byte scan of a progressive JPEG runs over all 64 megapixels once more (0.07 s). Real files have a few
thousand pieces at most (libpng writes 8 KiB a chunk) and some ten scans.
"""

from typing import Final

MAX_PIECES: Final = 16_384
MAX_SCANS: Final = 64

_PNG = b"\x89PNG\r\n\x1a\n"
_JPEG = b"\xff\xd8\xff"
_START_OF_SCAN = 0xDA
_STANDALONE = frozenset({0x01, *range(0xD0, 0xDA)})  # markers that no length follows


def too_many(data: bytes) -> str | None:
    """What the file has too many of, in words; None where it may be decoded."""
    if data.startswith(_PNG):
        return _png(data)
    if data.startswith(_JPEG):
        return _jpeg(data)
    return None


def _png(data: bytes) -> str | None:
    at = len(_PNG)
    for _ in range(MAX_PIECES):
        if at + 8 > len(data):
            return None
        at += 12 + int.from_bytes(data[at : at + 4], "big")
    return f"more than {MAX_PIECES:,} chunks"


def _jpeg(data: bytes) -> str | None:
    at = 2
    for _ in range(MAX_PIECES):
        if at + 4 > len(data):
            return None
        if data[at] != 0xFF or data[at + 1] == 0xFF:
            at += 1  # a stray or a fill byte: a decoder looks at each
        elif data[at + 1] == 0 or data[at + 1] in _STANDALONE:
            at += 2
        elif data[at + 1] == _START_OF_SCAN:
            # Within a scan 0xFF is followed by 0 or a restart, so this finds scans and, at worst, thumbnails.
            scans = data.count(bytes((0xFF, _START_OF_SCAN)), at)
            return f"{scans:,} scans; at most {MAX_SCANS} are taken" if scans > MAX_SCANS else None
        else:
            at += 2 + int.from_bytes(data[at + 2 : at + 4], "big")
    return f"more than {MAX_PIECES:,} segments and fill bytes before its pixels"
