"""PNG: keeps the chunks of the picture itself, reads orientation and colour space from the others.

An ancillary chunk whose checksum or length is wrong counts as absent, as in libpng. Of an animation, the
default image is taken.
"""

import struct
import zlib
from collections.abc import Iterator
from typing import Final

from app.media.colorimetry.primaries import Chromaticities
from app.media.pictures.containers import colour_space, exif
from app.media.pictures.containers.colour_space import ColourSpace
from app.media.pictures.containers.contents import Contents
from app.media.pictures.image_structure import MAX_PARTS
from app.media.pictures.rejection import damaged, too_complex, unsupported

MAX_PROFILE_BYTES: Final = 4 * 2**20
_SIGNATURE: Final = b"\x89PNG\r\n\x1a\n"
_CRITICAL: Final = (b"IHDR", b"PLTE", b"IDAT", b"IEND")
_READ: Final = (b"iCCP", b"sRGB", b"gAMA", b"cHRM", b"cICP", b"eXIf")
_GREY, _RGB, _PALETTE = 0, 2, 3
_ANY = range(1, 257)
_KEY_BYTES: Final = {_GREY: range(2, 3), _RGB: range(6, 7), _PALETTE: _ANY}


def contents(data: bytes) -> Contents:
    """As `take_apart`."""
    kept, read = [_SIGNATURE], dict[bytes, bytes]()
    header = b""
    for kind, whole in _chunks(data):
        body = whole[8:-4]
        if kind in _CRITICAL:
            kept.append(bytes(whole))
            header = header or (bytes(body) if kind == b"IHDR" else b"")
        elif not kind[0] & 0x20:
            raise damaged(f"it has an unknown critical chunk {kind!r}")
        elif _is_sound(whole):
            if kind == b"tRNS" and len(header) == 13 and len(body) in _KEY_BYTES.get(header[9], ()):
                if header[8] == 16 and header[9] == _RGB:
                    raise unsupported("has 16 bits a channel and a transparent colour")
                kept.append(bytes(whole))
            elif kind in _READ:
                read.setdefault(kind, bytes(body))
    if len(header) != 13:
        raise damaged("it has no header")
    profile, space, ignored = _colours(read)
    width, height = struct.unpack(">II", header[:8])
    return Contents(
        "PNG",
        b"".join(kept),
        (width, height),
        orientation=exif.orientation(read.get(b"eXIf")),
        profile=profile,
        space=space,
        ignored=ignored,
    )


def _chunks(data: bytes) -> Iterator[tuple[bytes, memoryview]]:
    """The chunks up to the end, with length and checksum; the last one may be cut."""
    at, view = len(_SIGNATURE), memoryview(data)
    for _ in range(MAX_PARTS):
        if at + 8 > len(data):
            return
        kind = data[at + 4 : at + 8]
        size = 12 + int.from_bytes(data[at : at + 4], "big")
        yield kind, view[at : at + size]
        if kind == b"IEND":
            return
        at += size
    raise too_complex(f"more than {MAX_PARTS:,} chunks")


def _is_sound(chunk: memoryview) -> bool:
    whole = len(chunk) == 12 + int.from_bytes(chunk[:4], "big")
    return whole and zlib.crc32(chunk[4:-4]) == int.from_bytes(chunk[-4:], "big")


def _colours(read: dict[bytes, bytes]) -> tuple[bytes | None, ColourSpace | None, tuple[str, ...]]:
    """Profile, space and what was ignored. The first of cICP, iCCP, sRGB, and gAMA with cHRM counts."""
    codes = read.get(b"cICP", b"")
    if len(codes) == 4 and codes[2] == 0:  # other matrices mean that the pixels are not RGB
        return None, colour_space.from_codes(codes[0], codes[1]), ()
    ignored: tuple[str, ...] = ()
    if b"iCCP" in read:
        profile = _inflated(read[b"iCCP"])
        if profile is not None:
            return profile, None, ()
        ignored = ("colour profile",)
    if b"sRGB" in read:
        return None, None, ignored
    gamma, primaries = read.get(b"gAMA", b""), read.get(b"cHRM", b"")
    exponent = int.from_bytes(gamma, "big") / 100_000 if len(gamma) == 4 else None
    given: Chromaticities | None = None
    if len(primaries) == 32:
        given = tuple(value / 100_000 for value in struct.unpack(">8I", primaries))
    return None, colour_space.from_gamma(exponent, given), ignored


def _inflated(chunk: bytes) -> bytes | None:
    """The profile in an iCCP chunk; None if it is damaged or too large."""
    name, separator, rest = chunk[:81].partition(b"\0")
    if not separator:
        return None
    stream = zlib.decompressobj()
    try:
        profile = stream.decompress(chunk[len(name) + 2 :], MAX_PROFILE_BYTES)
    except zlib.error:
        return None
    return profile if rest[:1] == b"\0" and stream.eof else None
