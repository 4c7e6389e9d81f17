"""HEIC and AVIF: reads the boxes that describe the primary picture, without its coded pixels.

Renames EXIF and XMP items, so that a decoder that fails on damaged ones does not see them. The rotation that
counts in these formats is a property of the picture; the decoders apply it.
"""

import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final

from app.media.pictures.containers import colour_space
from app.media.pictures.containers.contents import Contents
from app.media.pictures.image_structure import MAX_PARTS
from app.media.pictures.rejection import ImageRejected, damaged, too_complex, unsupported

MAX_TILES: Final = 1024
MAX_PROFILE_BYTES: Final = 4 * 2**20
_BRANDS: Final = frozenset(
    {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1", b"avif", b"avis"}
)
_FORMATS: Final = {b"hvc1": "HEIC", b"hev1": "HEIC", b"av01": "AVIF"}
_CONTAINERS: Final = frozenset({b"iprp", b"ipco", b"iinf", b"iref"})
_HIDDEN: Final = {b"Exif": b"skip", b"mime": b"skip"}
_NOT_SPECIFIED: Final = b"\0\2\0\2"
_MATRICES_BY_PRIMARIES: Final = (b"\x0c", b"\x0d")


@dataclass(slots=True)
class _Items:
    """The items of a file: types and properties by item id, properties by index."""

    primary: int | None = None
    types: dict[int, bytes] = field(default_factory=dict)
    type_places: dict[int, int] = field(default_factory=dict)
    tiles: dict[int, list[int]] = field(default_factory=dict)
    properties: list[tuple[bytes, bytes]] = field(default_factory=list)
    property_places: list[int] = field(default_factory=list)
    associated: dict[int, list[int]] = field(default_factory=dict)

    def of(self, item: int, kind: bytes) -> list[bytes]:
        """The contents of an item's properties of that kind."""
        found = (
            self.properties[n - 1] for n in self.associated.get(item, []) if 0 < n <= len(self.properties)
        )
        return [body for name, body in found if name == kind]

    def size(self, item: int) -> tuple[int, int]:
        sizes = [body for body in self.of(item, b"ispe") if len(body) >= 12]
        if not sizes:
            raise damaged("an item has no size")
        width, height = struct.unpack_from(">II", sizes[0], 4)
        return width, height


def contents(data: bytes) -> Contents:
    """As `take_apart`."""
    brands = _brands(data)
    if not brands & _BRANDS:
        raise ImageRejected("not_an_image", "the file is a video or of another kind than HEIC and AVIF")
    try:
        items, end = _items(data)
    except (struct.error, IndexError):
        raise damaged("its description is cut") from None
    if items.primary is None or items.primary not in items.types:
        raise unsupported("is a sequence without a still picture")
    tiles = items.tiles.get(items.primary, [])
    kind = _coded_kind(items, tiles)
    profile, space, ignored = _colours(items, [items.primary, *tiles[:1]])
    areas = {tile: items.size(tile) for tile in set(tiles)}
    return Contents(
        _FORMATS[kind],
        _hidden(data[:end], items, _FORMATS[kind]),
        _largest(items, items.primary),
        profile=profile,
        space=space,
        ignored=ignored,
        pieces_pixels=sum(areas[tile][0] * areas[tile][1] for tile in tiles),
    )


def _brands(data: bytes) -> set[bytes]:
    end = min(len(data), int.from_bytes(data[:4], "big"), 16 + 4 * 64)
    return {data[8:12], *(data[at : at + 4] for at in range(16, end - 3, 4))}


def _coded_kind(items: _Items, tiles: list[int]) -> bytes:
    """The coding of the primary picture: its own, or that of all its tiles."""
    assert items.primary is not None
    kind = items.types[items.primary]
    if kind == b"grid":
        if len(tiles) > MAX_TILES:
            raise too_complex(f"{len(tiles):,} tiles; at most {MAX_TILES:,} are allowed")
        kinds = {items.types.get(tile, b"none") for tile in tiles}
        kind = kinds.pop() if len(kinds) == 1 else b"none"
    if kind not in _FORMATS:
        raise unsupported(f"holds a picture of type {kind.decode('latin-1')!r}")
    return kind


def _largest(items: _Items, primary: int) -> tuple[int, int]:
    """The primary picture's size; or that of a larger one, which some decoders look at as well."""
    sizes = [items.size(item) for item in items.types if items.of(item, b"ispe")]
    too_large = max(sizes, key=lambda size: size[0] * size[1], default=(0, 0))
    own = items.size(primary)
    return too_large if too_large[0] * too_large[1] > 4 * max(own[0] * own[1], 2**22) else own


def _colours(
    items: _Items, order: list[int]
) -> tuple[bytes | None, colour_space.ColourSpace | None, tuple[str, ...]]:
    boxes = next((found for item in order if (found := items.of(item, b"colr"))), [])
    codes = [struct.unpack_from(">HH", box, 4) for box in boxes if box[:4] == b"nclx" and len(box) >= 10]
    space = colour_space.from_codes(*codes[0]) if codes else None
    profiles = [box[4:] for box in boxes if box[:4] in (b"prof", b"rICC")]
    if not profiles:
        return None, space, ()
    if len(profiles[0]) > MAX_PROFILE_BYTES:
        return None, space, ("colour profile",)
    return profiles[0], space, ()


def _hidden(data: bytes, items: _Items, kind: str) -> bytes:
    changed = bytearray(data)
    for item, name in items.types.items():
        if name in _HIDDEN:
            at = items.type_places[item]
            changed[at : at + 4] = _HIDDEN[name]
    for place, (name, body) in zip(items.property_places, items.properties, strict=True):
        # A decoder needs the matrix only. It refuses codes of primaries and transfer that it does not know.
        if name == b"colr" and body[:4] == b"nclx" and body[9:10] not in _MATRICES_BY_PRIMARIES:
            changed[place + 4 : place + 8] = _NOT_SPECIFIED
    if kind == "AVIF":
        changed[8:12] = b"avif"  # the still picture, not the sequence that may lie beside it
    return bytes(changed)


class _Boxes:
    """Walks the boxes of a file; ends after too many of them.

    Once the picture is `described`, the file is `whole` up to what is no box.
    """

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.whole = len(data)
        self.described = False
        self._left = MAX_PARTS

    def within(self, at: int, end: int) -> Iterator[tuple[bytes, int, int]]:
        """Type, begin and end of the content of each box between two places."""
        while at + 8 <= end:
            self.count(1)
            size, kind, begin = (
                int.from_bytes(self.data[at : at + 4], "big"),
                self.data[at + 4 : at + 8],
                at + 8,
            )
            if size == 1:
                size, begin = int.from_bytes(self.data[at + 8 : at + 16], "big"), at + 16
            following = end if size == 0 else at + size
            if following < begin and end == len(self.data) and self.described:
                self.whole = at  # no box: what another program has appended
                return
            if following < begin:
                raise damaged("a box is shorter than its header")
            yield kind, begin, min(end, following)
            at = following

    def count(self, parts: int) -> None:
        self._left -= parts
        if self._left < 0:
            raise too_complex(f"more than {MAX_PARTS:,} boxes and items")


def _items(data: bytes) -> tuple[_Items, int]:
    """What the file describes, and where its boxes end."""
    boxes, items = _Boxes(data), _Items()
    for kind, begin, end in boxes.within(0, len(data)):
        if kind == b"meta" and not items.types:
            for inner, at, stop in boxes.within(begin + 4, end):
                _read(boxes, items, inner, at, stop)
            boxes.described = True
    return items, boxes.whole


def _read(boxes: _Boxes, items: _Items, kind: bytes, at: int, end: int) -> None:
    data = boxes.data
    if kind == b"pitm":
        items.primary = _number(data, at + 4, 2 if data[at] == 0 else 4)
    elif kind == b"iinf":
        for _, begin, stop in boxes.within(at + (6 if data[at] == 0 else 8), end):
            _read_item(data, items, begin, stop)
    elif kind == b"iref":
        width = 2 if data[at] == 0 else 4
        for name, begin, stop in boxes.within(at + 4, end):
            count = _number(data, begin + width, 2)
            boxes.count(count)
            if name == b"dimg" and begin + width * (count + 1) + 2 <= stop:
                places = range(begin + width + 2, begin + 2 + width * (count + 1), width)
                items.tiles.setdefault(
                    _number(data, begin, width), [_number(data, place, width) for place in places]
                )
    elif kind == b"iprp":
        for name, begin, stop in boxes.within(at, end):
            if name == b"ipco":
                for inner, first, last in boxes.within(begin, stop):
                    items.properties.append((inner, data[first:last]))
                    items.property_places.append(first)
            elif name == b"ipma":
                _read_associations(boxes, items, begin)


def _read_item(data: bytes, items: _Items, begin: int, end: int) -> None:
    version = data[begin]
    if version not in (2, 3):
        return
    width = 2 if version == 2 else 4
    place = begin + 4 + width + 2
    if place + 4 <= end:
        item = _number(data, begin + 4, width)
        items.types[item] = data[place : place + 4]
        items.type_places[item] = place


def _read_associations(boxes: _Boxes, items: _Items, at: int) -> None:
    data = boxes.data
    width, long = (2 if data[at] == 0 else 4), data[at + 3] & 1
    entries, at = _number(data, at + 4, 4), at + 8
    for _ in range(entries):
        item, count = _number(data, at, width), data[at + width]
        boxes.count(1 + count)
        at += width + 1
        step = 2 if long else 1
        numbers = [_number(data, at + n * step, step) & (0x7FFF if long else 0x7F) for n in range(count)]
        items.associated.setdefault(item, []).extend(numbers)
        at += count * step


def _number(data: bytes, at: int, width: int) -> int:
    if at + width > len(data):
        raise IndexError
    return int.from_bytes(data[at : at + width], "big")
