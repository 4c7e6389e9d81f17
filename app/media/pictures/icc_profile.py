"""Writes ICC profiles of colour spaces that are given by numbers. Must not know images."""

import struct
from typing import Final

import numpy as np

from app.media.colorimetry.xyz import adaptation, rgb_to_xyz, white_of
from app.media.pictures.containers.colour_space import ColourSpace

# An ICC profile, version 4 (ICC.1:2010): a header of 128 bytes, a table of tags, and the tags.
_D50: Final = (0.9642, 1.0, 0.8249)
# sRGB's curve as parameters g, a, b, c, d of the ICC's function of type 3.
_SRGB_CURVE: Final = (2.4, 1 / 1.055, 0.055 / 1.055, 1 / 12.92, 0.04045)


def rgb_profile(space: ColourSpace) -> bytes:
    """A display profile with these primaries, adapted to D50 as the ICC asks for."""
    chromaticities = space.chromaticities
    adapted = adaptation(white_of(chromaticities), np.array(_D50)) @ rgb_to_xyz(chromaticities)
    points = {name: _point(adapted[:, n]) for n, name in enumerate((b"rXYZ", b"gXYZ", b"bXYZ"))}
    curve = _curve(space.gamma)
    return _written(b"RGB ", {**points, **dict.fromkeys((b"rTRC", b"gTRC", b"bTRC"), curve)})


def grey_profile(gamma: float | None) -> bytes:
    """A display profile for shades of grey; without a gamma, with sRGB's curve."""
    return _written(b"GRAY", {b"kTRC": _curve(gamma)})


def _written(space: bytes, tags: dict[bytes, bytes]) -> bytes:
    tags = {b"wtpt": _point(np.array(_D50)), **tags}
    table, body = struct.pack(">I", len(tags)), b""
    begin = 128 + 4 + 12 * len(tags)
    for name, tag in tags.items():
        table += name + struct.pack(">II", begin + len(body), len(tag))
        body += tag + b"\0" * (-len(tag) % 4)
    head = struct.pack(
        ">I4sI4s4s4s12s4s28s12s48x",
        begin + len(body),
        b"",
        0x04200000,
        b"mntr",
        space,
        b"XYZ ",
        struct.pack(">6H", 2026, 1, 1, 0, 0, 0),
        b"acsp",
        b"",
        _fixed(_D50),
    )
    return head + table + body


def _curve(gamma: float | None) -> bytes:
    kind, numbers = (3, _SRGB_CURVE) if gamma is None else (0, (gamma,))
    return b"para" + struct.pack(">IHH", 0, kind, 0) + _fixed(numbers)


def _point(values: "np.ndarray[tuple[int], np.dtype[np.float64]]") -> bytes:
    return b"XYZ " + bytes(4) + _fixed(tuple(values))


def _fixed(values: "tuple[float, ...]") -> bytes:
    """Numbers as signed fixed-point ones with 16 bits of fraction."""
    return struct.pack(f">{len(values)}i", *(round(value * 65536) for value in values))
