"""TIFF and BigTIFF: gives the decoder a new directory of the first page, with what its pixels need.

Checks the numbers in them that make a decoder allocate memory or repeat work.
"""

import struct
from dataclasses import dataclass
from typing import Final

from app.media.pictures.containers.contents import Contents
from app.media.pictures.rejection import ImageRejected, damaged, too_complex, unsupported

MAX_ENTRIES: Final = 1024
MAX_PIECES: Final = 65_536  # strips or tiles: one for each row of the highest image and each of four planes
MAX_TILE_PIXELS: Final = 4096 * 4096
MAX_SAMPLES: Final = 6
MAX_PROFILE_BYTES: Final = 4 * 2**20

_WIDTH, _HEIGHT, _BITS, _PHOTOMETRIC, _ORIENTATION, _SAMPLES = 256, 257, 258, 262, 274, 277
_TILE_WIDTH, _TILE_HEIGHT, _SAMPLE_FORMAT, _PROFILE = 322, 323, 339, 34675
_SUBFILE, _DNG = 254, 50706
# Compression, fill order, strips, planes, fax options, predictor, palette, tiles, inks, extra samples, JPEG
# tables and the old JPEG's offsets, YCbCr's numbers.
_KEPT: Final = frozenset(
    {256, 257, 258, 259, 262, 266, 273, 277, 278, 279, 284, 292, 293, 317, 320, 322, 323, 324, 325, 332}
    | {338, 339, 347, *range(512, 522), 529, 530, 531, 532}
)
_BYTES: Final = {
    1: 1,
    2: 1,
    3: 2,
    4: 4,
    5: 8,
    6: 1,
    7: 1,
    8: 2,
    9: 4,
    10: 8,
    11: 4,
    12: 8,
    13: 4,
    16: 8,
    17: 8,
}
_CODES: Final = {1: "B", 3: "H", 4: "I", 13: "I", 16: "Q"}
_LONG, _LONG8 = 4, 16
_WHITE_IS_ZERO: Final = 0
_LAB_KINDS: Final = {8: "CIELab", 9: "ICCLab", 10: "ITULab"}
_LIMITS: Final = {_BITS: MAX_SAMPLES, _SAMPLE_FORMAT: MAX_SAMPLES, 320: 3 * 65_536}


@dataclass(frozen=True, slots=True)
class _Form:
    """How a TIFF file writes numbers: byte order, and classic or BigTIFF."""

    order: str
    big: bool

    @property
    def offset(self) -> str:
        return self.order + ("Q" if self.big else "I")

    @property
    def entry(self) -> struct.Struct:
        return struct.Struct(self.order + ("HHQ8s" if self.big else "HHI4s"))

    @property
    def count(self) -> struct.Struct:
        return struct.Struct(self.order + ("Q" if self.big else "H"))


@dataclass(frozen=True, slots=True)
class _Entry:
    kind: int
    count: int
    value: bytes  # the values themselves or their place, as written


def contents(data: bytes) -> Contents:
    """As `take_apart`."""
    form = _Form("<" if data[:2] == b"II" else ">", data[2:4] in (b"+\0", b"\0+"))
    if data[8:10] == b"CR":
        raise unsupported("is a camera's raw file (CR2)")
    try:
        entries = _directory(data, form)
        size, orientation = _checked(data, form, entries)
        profile = _values(data, form, entries.get(_PROFILE))
        pixels = _rewritten(data, form, entries)
    except (struct.error, OverflowError):
        raise damaged("its directory points outside the file") from None
    if profile is not None and len(profile) > MAX_PROFILE_BYTES:
        profile = None
    return Contents(
        "TIFF",
        pixels,
        size,
        orientation=orientation,
        profile=profile,
        ignored=("colour profile",) if _PROFILE in entries and profile is None else (),
    )


def _directory(data: bytes, form: _Form) -> dict[int, _Entry]:
    (at,) = struct.unpack_from(form.offset, data, 8 if form.big else 4)
    (count,) = form.count.unpack_from(data, at)
    if count > MAX_ENTRIES:
        raise too_complex(f"{count:,} directory entries; at most {MAX_ENTRIES:,} are allowed")
    entries: dict[int, _Entry] = {}
    at += form.count.size
    for number in range(count):
        tag, kind, values, value = form.entry.unpack_from(data, at + number * form.entry.size)
        entries.setdefault(tag, _Entry(kind, values, value))
    return entries


def _values(data: bytes, form: _Form, entry: _Entry | None) -> bytes | None:
    """The bytes of an entry's values; None if there is none or they are not in the file."""
    if entry is None:
        return None
    length = _BYTES.get(entry.kind, 0) * entry.count
    if length <= len(entry.value):
        return entry.value[:length]
    (at,) = struct.unpack(form.offset, entry.value)
    return data[at : at + length] if at + length <= len(data) else None


def _numbers(data: bytes, form: _Form, entries: dict[int, _Entry], tag: int) -> list[int]:
    """The first values of an integer entry; empty if it is absent or of another type."""
    entry = entries.get(tag)
    if entry is None or entry.kind not in _CODES or entry.count > 16:
        return []
    values = _values(data, form, entry)
    return list(struct.unpack(f"{form.order}{entry.count}{_CODES[entry.kind]}", values)) if values else []


def _checked(data: bytes, form: _Form, entries: dict[int, _Entry]) -> tuple[tuple[int, int], int]:
    """The size and the orientation. Raises `ImageRejected`."""

    def first(tag: int, default: int) -> int:
        return next(iter(_numbers(data, form, entries, tag)), default)

    if _DNG in entries or (first(_SUBFILE, 0) & 1):
        raise unsupported("is a camera's raw file or begins with a thumbnail")
    size = first(_WIDTH, 0), first(_HEIGHT, 0)
    if not all(size):
        raise ImageRejected("not_an_image", "the TIFF file has no picture in its first directory")
    bits, formats = _numbers(data, form, entries, _BITS) or [1], _numbers(data, form, entries, _SAMPLE_FORMAT)
    if max(bits) > 16 or any(kind not in (1, 4) for kind in formats):
        raise unsupported(f"is a TIFF of {max(bits)} bits with signed or floating-point samples")
    if max(bits) == 12 or (max(bits) == 16 and first(_PHOTOMETRIC, 1) == _WHITE_IS_ZERO):
        # Pillow gives these numbers as they are: too dark, or inverted.
        raise unsupported(f"is a TIFF of {max(bits)} bits a channel of a rare kind")
    if first(_PHOTOMETRIC, 1) in _LAB_KINDS and (max(bits) != 8 or first(_PHOTOMETRIC, 1) != 8):
        raise unsupported(f"is a TIFF in {_LAB_KINDS[first(_PHOTOMETRIC, 1)]} of {max(bits)} bits")
    if first(_SAMPLES, 1) > MAX_SAMPLES:
        raise unsupported(f"has {first(_SAMPLES, 1)} channels")
    tile = first(_TILE_WIDTH, 0), first(_TILE_HEIGHT, 0)
    if tile[0] * tile[1] > MAX_TILE_PIXELS:
        raise too_complex(f"tiles of {tile[0]} x {tile[1]} pixels")
    for tag in _KEPT & entries.keys():
        if entries[tag].count > (limit := _LIMITS.get(tag, MAX_PIECES)):
            raise too_complex(f"{entries[tag].count:,} values in entry {tag}; at most {limit:,} are allowed")
    turned = first(_ORIENTATION, 1)
    return size, turned if 1 <= turned <= 8 else 1


def _rewritten(data: bytes, form: _Form, entries: dict[int, _Entry]) -> bytes:
    """The file as a classic TIFF with a new directory at its end.

    Offsets count from the file's begin, so that the pixels stay where they are.
    """
    at = len(data) + len(data) % 2
    rows, values = b"", b""
    kept = [(tag, entries[tag]) for tag in sorted(_KEPT & entries.keys())]
    begin = at + 2 + 12 * len(kept) + 4
    for tag, entry in kept:
        body = _values(data, form, entry)
        if body is None:
            raise damaged(f"entry {tag} of its directory points outside the file")
        kind = entry.kind
        if kind == _LONG8:
            numbers = struct.unpack(f"{form.order}{entry.count}Q", body)
            kind, body = _LONG, struct.pack(f"{form.order}{entry.count}I", *numbers)
        rows += struct.pack(f"{form.order}HHI", tag, kind, entry.count)
        if len(body) > 4:
            rows += struct.pack(f"{form.order}I", begin + len(values))
            values += body + b"\0" * (len(body) % 2)
        else:
            rows += body.ljust(4, b"\0")
    directory = struct.pack(f"{form.order}H", len(kept)) + rows + bytes(4) + values
    head = data[:2] + struct.pack(f"{form.order}HI", 42, at)
    return head + data[len(head) :] + b"\0" * (at - len(data)) + directory
