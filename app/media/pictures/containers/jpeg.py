"""JPEG: keeps what the decoder needs before the pixels, reads EXIF's orientation and the ICC profile.

JFIF and Adobe segments are kept, because they say how colours are coded; JFIF's thumbnail is left out.
"""

from collections.abc import Iterator
from typing import Final

from app.media.pictures.containers import exif
from app.media.pictures.containers.contents import Contents
from app.media.pictures.image_structure import excess_parts
from app.media.pictures.rejection import damaged, too_complex, unsupported

_STANDALONE: Final = frozenset({0x01, *range(0xD0, 0xD8)})
_SIZES: Final = frozenset({*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC})
_READABLE: Final = {0xC0, 0xC1, 0xC2, 0xC9, 0xCA}  # baseline, extended, progressive; Huffman or arithmetic
_SCAN, _END, _COMMENT = 0xDA, 0xD9, 0xFE
_APP0, _APP1, _APP2, _APP14, _APP15 = 0xE0, 0xE1, 0xE2, 0xEE, 0xEF
_PROFILE: Final = b"ICC_PROFILE\0"
MAX_PROFILE_BYTES: Final = 4 * 2**20


def contents(data: bytes) -> Contents:
    """As `take_apart`."""
    excess = excess_parts(data)
    if excess is not None:
        raise too_complex(excess)
    kept, exifs, profiles = [b"\xff\xd8"], list[bytes](), list[bytes]()
    size, rest = None, len(data)
    for marker, at, body in _segments(data):
        if marker in _SIZES and len(body) >= 5:
            _check_kind(marker, body[0])
            size = int.from_bytes(body[3:5], "big"), int.from_bytes(body[1:3], "big")
        if marker == _SCAN:
            rest = at
            break
        if marker == _APP0 and body[:5] == b"JFIF\0" and len(body) >= 12:
            kept.append(b"\xff\xe0\x00\x10" + body[:12] + b"\0\0")
        elif marker == _APP1 and body[:6] == b"Exif\0\0":
            exifs.append(body)
        elif marker == _APP2 and body[:12] == _PROFILE:
            profiles.append(body[12:])
        elif not (_APP0 <= marker <= _APP15 or marker == _COMMENT) or _is_adobe(marker, body):
            kept.append(data[at : at + 4] + body)
    if size is None:
        raise damaged("it has no size before its pixels")
    profile = _joined(profiles)
    return Contents(
        "JPEG",
        b"".join(kept) + data[rest:],
        size,
        orientation=exif.orientation(exifs[0] if exifs else None),
        profile=profile,
        ignored=("colour profile",) if profiles and profile is None else (),
    )


def _segments(data: bytes) -> Iterator[tuple[int, int, bytes]]:
    """Each marker with its place and the segment's content, up to the first scan."""
    at = 2
    while at + 4 <= len(data):
        if data[at] != 0xFF or data[at + 1] in (0xFF, 0):
            at += 1
        elif data[at + 1] in _STANDALONE:
            at += 2
        elif data[at + 1] == _END:
            return
        else:
            size = max(2, int.from_bytes(data[at + 2 : at + 4], "big"))
            yield data[at + 1], at, data[at + 4 : at + 2 + size]
            at += 2 + size


def _check_kind(marker: int, bits: int) -> None:
    if marker not in _READABLE:
        raise unsupported("is a lossless or hierarchical JPEG")
    if bits != 8:
        raise unsupported(f"is a JPEG of {bits} bits")


def _is_adobe(marker: int, body: bytes) -> bool:
    return marker == _APP14 and body[:5] == b"Adobe" and len(body) >= 12


def _joined(pieces: list[bytes]) -> bytes | None:
    """The ICC profile from its numbered pieces; None if there is none, or one is missing."""
    numbered = {piece[0]: piece[2:] for piece in reversed(pieces) if len(piece) > 2}
    if not pieces or not pieces[0] or sorted(numbered) != list(range(1, len(numbered) + 1)):
        return None
    profile = b"".join(numbered[number] for number in sorted(numbered))
    complete = len(pieces[0]) > 1 and pieces[0][1] == len(numbered)
    return profile if complete and len(profile) <= MAX_PROFILE_BYTES else None
