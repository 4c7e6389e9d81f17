"""Pictures of every kind that people send, made by code, each with what must become of it.

Each shows the same six fields of colour, so that it says by itself which colours are right and which way is
up: `COLOURS` in sRGB, three fields wide and two high, in `SIZE`. Pictures in other colour spaces are
computed here from their definitions, not with the code under test.
"""

import io
import struct
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import cache
from typing import Any

import av
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageCms

Pixels = NDArray[Any]

SIZE = WIDE, HIGH = 96, 64
FIELD = 32
COLOURS = np.array(
    [
        [(200, 120, 90), (90, 160, 200), (60, 60, 64)],
        [(240, 240, 236), (40, 96, 48), (128, 100, 180)],
    ],
    dtype=np.uint8,
)


@dataclass(frozen=True, slots=True)
class Case:
    """A file and what is right: the code of its refusal, or the picture.

    `colours` are the six fields as they must come out, upright `[rows, columns, 3]`, or None if only
    `reader` knows. `reader` is the independent program that reads this kind right: vips, vips with
    profiles, magick, or none.
    """

    name: str
    data: bytes
    code: str | None = None
    colours: Pixels | None = None
    reader: str | None = "vips"
    size: tuple[int, int] = SIZE
    near: int = 2  # of 255; larger where the file's own coding has lost more


def fields(colours: Pixels = COLOURS) -> Pixels:
    """The picture `[HIGH, WIDE, channels]` with these colours."""
    return np.repeat(np.repeat(colours, FIELD, 0), FIELD, 1)


def picture(mode: str = "RGB") -> Image.Image:
    """The picture in one of Pillow's modes."""
    image = Image.fromarray(fields())
    if mode == "P":
        return image.quantize(16)
    if mode == "I;16":
        grey = np.asarray(image.convert("L")).astype(np.uint16) * 257
        return Image.fromarray(grey)
    if mode == "LAB":
        lab = ImageCms.buildTransform(
            ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB"), "RGB", "LAB"
        )
        return ImageCms.applyTransform(image, lab)  # type: ignore[return-value]
    return image.convert(mode)


def saved(image: Image.Image, kind: str, **options: Any) -> bytes:
    """The image as a file."""
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def bmp_of_runs(bits: int, runs: bytes) -> bytes:
    """A BMP in `SIZE` of those runs, whose six colours are `COLOURS` in rows."""
    palette = b"".join(bytes([blue, green, red, 0]) for red, green, blue in COLOURS.reshape(-1, 3).tolist())
    begin = 54 + len(palette)
    head = b"BM" + struct.pack("<IIIIiiHH", begin + len(runs), 0, begin, 40, WIDE, HIGH, 1, bits)
    return head + struct.pack("<IIiiII", 8 // bits, len(runs), 0, 0, 6, 0) + palette + runs


# ------------------------------------------------------------------ colour spaces

D65 = (0.3127, 0.3290)
PRIMARIES = {
    "srgb": (D65, (0.64, 0.33), (0.30, 0.60), (0.15, 0.06)),
    "p3": (D65, (0.68, 0.32), (0.265, 0.69), (0.15, 0.06)),
    "adobe": (D65, (0.64, 0.33), (0.21, 0.71), (0.15, 0.06)),
    "bt2020": (D65, (0.708, 0.292), (0.170, 0.797), (0.131, 0.046)),
    "prophoto": ((0.3457, 0.3585), (0.7347, 0.2653), (0.1596, 0.8404), (0.0366, 0.0001)),
}
GAMMAS = {"srgb": None, "p3": None, "adobe": 2.19921875, "bt2020": None, "prophoto": 1.8}
BRADFORD = np.array([[0.8951, 0.2664, -0.1614], [-0.7502, 1.7135, 0.0367], [0.0389, -0.0685, 1.0296]])
D50 = np.array([0.9642, 1.0, 0.8249])


def _xyz(x: float, y: float) -> Pixels:
    return np.array([x / y, 1, (1 - x - y) / y])


def to_d50(space: str) -> Pixels:
    """The matrix from linear RGB to XYZ under D50."""
    white, *corners = (_xyz(*point) for point in PRIMARIES[space])
    columns = np.stack(corners, 1)
    columns = columns * np.linalg.solve(columns, white)
    adapt = np.linalg.inv(BRADFORD) @ np.diag((BRADFORD @ D50) / (BRADFORD @ white)) @ BRADFORD
    return np.asarray(adapt @ columns)


def light(values: Pixels, gamma: float | None) -> Pixels:
    """Values 0 to 1 as linear light; without a gamma, by sRGB's curve."""
    if gamma is not None:
        return values**gamma
    return np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)


def coded(values: Pixels, gamma: float | None) -> Pixels:
    """The inverse of `light`."""
    values = values.clip(0, 1)
    if gamma is not None:
        return values ** (1 / gamma)
    return np.where(values <= 0.0031308, values * 12.92, 1.055 * values ** (1 / 2.4) - 0.055)


def in_space(space: str, gamma: float | str | None = "own") -> Pixels:
    """`COLOURS` as values 0 to 1 of another colour space."""
    matrix = np.linalg.inv(to_d50(space)) @ to_d50("srgb")
    curve = GAMMAS[space] if gamma == "own" else gamma
    assert not isinstance(curve, str)
    return coded(light(COLOURS / 255, None) @ matrix.T, curve)


def bytes_of(values: Pixels) -> Pixels:
    return np.asarray((values * 255).round().astype(np.uint8))


def icc(kind: str = "RGB ", space: str = "srgb", gamma: float | None = None) -> bytes:
    """An ICC profile, version 2; without a gamma, with a table of sRGB's curve."""
    table = (light(np.linspace(0, 1, 1024), None) * 65535).round().astype(">u2").tobytes()
    curve = struct.pack(">4sII", b"curv", 0, 1024) + table
    if gamma is not None:
        curve = struct.pack(">4sIIH", b"curv", 0, 1, round(gamma * 256)) + b"\0\0"
    point = lambda xyz: struct.pack(">4sI3i", b"XYZ ", 0, *(round(v * 65536) for v in xyz))  # noqa: E731
    text = b"text\0\0\0\0none\0\0\0\0"
    tags = {
        b"wtpt": point(D50),
        b"cprt": text,
        b"desc": struct.pack(">4sII5s", b"desc", 0, 5, b"test\0") + bytes(79),
    }
    if kind == "RGB ":
        columns = to_d50(space)
        tags |= {name: point(columns[:, n]) for n, name in enumerate((b"rXYZ", b"gXYZ", b"bXYZ"))}
        tags |= dict.fromkeys((b"rTRC", b"gTRC", b"bTRC"), curve)
    else:
        tags[b"kTRC"] = curve
    directory, body, begin = struct.pack(">I", len(tags)), b"", 132 + 12 * len(tags)
    for name, tag in tags.items():
        directory += name + struct.pack(">II", begin + len(body), len(tag))
        body += tag + bytes(-len(tag) % 4)
    head = struct.pack(">I4xI4s4s4s", begin + len(body), 0x02100000, b"mntr", kind.encode(), b"XYZ ")
    head += struct.pack(">6H4s", 2026, 1, 1, 0, 0, 0, b"acsp").ljust(44, b"\0")
    head += struct.pack(">3i", *(round(v * 65536) for v in D50))
    return head.ljust(128, b"\0") + directory + body


def profile_of(space: str) -> bytes:
    return icc("RGB ", space, GAMMAS[space])


# ------------------------------------------------------------------ PNG


def chunk(kind: bytes, body: bytes, crc: int | None = None) -> bytes:
    check = zlib.crc32(kind + body) if crc is None else crc
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", check)


def png(
    pixels: Pixels, *, bits: int = 8, colour: int | None = None, before: bytes = b"", after: bytes = b""
) -> bytes:
    """Pixels `[height, width, channels]` as a PNG with these chunks before and after its pixels."""
    high, wide, channels = pixels.shape
    colour = {1: 0, 2: 4, 3: 2, 4: 6}[channels] if colour is None else colour
    if bits == 16:
        rows = pixels.astype(">u2").reshape(high, -1).view(np.uint8)
    elif bits == 8:
        rows = pixels.astype(np.uint8).reshape(high, -1)
    else:
        values = pixels.reshape(high, wide).astype(np.uint8)
        split = np.unpackbits(values[..., None], axis=2)[..., -bits:]
        rows = np.packbits(split.reshape(high, -1), axis=1)
    filtered = np.concatenate([np.zeros((high, 1), np.uint8), rows], 1)
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", wide, high, bits, colour, 0, 0, 0))
    data = chunk(b"IDAT", zlib.compress(filtered.tobytes()))
    return b"\x89PNG\r\n\x1a\n" + head + before + data + after + chunk(b"IEND", b"")


def iccp(profile: bytes) -> bytes:
    return chunk(b"iCCP", b"x\0\0" + zlib.compress(profile))


def gama(exponent: float) -> bytes:
    return chunk(b"gAMA", struct.pack(">I", round(exponent * 100_000)))


def chrm(space: str) -> bytes:
    values = [round(v * 100_000) for point in PRIMARIES[space] for v in point]
    return chunk(b"cHRM", struct.pack(">8I", *values))


# ------------------------------------------------------------------ other containers


def exif(orientation: int, kind: int = 3) -> bytes:
    """EXIF data with an orientation, without a prefix."""
    value = struct.pack("<HHI", 0x112, kind, 1) + struct.pack("<HH", orientation, 0)
    return b"II*\0" + struct.pack("<IH", 8, 1) + value + bytes(4)


def segment(marker: int, body: bytes) -> bytes:
    return bytes([0xFF, marker]) + struct.pack(">H", len(body) + 2) + body


def with_segments(jpeg: bytes, *segments: bytes) -> bytes:
    """A JPEG with more segments after its first."""
    at = 4 + int.from_bytes(jpeg[4:6], "big")
    return jpeg[:at] + b"".join(segments) + jpeg[at:]


def webp_with(data: bytes, *chunks: tuple[bytes, bytes], alpha: bool = False) -> bytes:
    """A simple WebP with further chunks."""
    flags = {b"ICCP": 0x20, b"EXIF": 0x08, b"XMP ": 0x04}
    bits = sum({flags.get(name, 0) for name, _ in chunks}) | (0x10 if alpha else 0)
    side = lambda v: (v - 1).to_bytes(3, "little")  # noqa: E731
    head = (b"VP8X", bytes([bits, 0, 0, 0]) + side(WIDE) + side(HIGH))
    before = [c for c in chunks if c[0] == b"ICCP"]
    after = [c for c in chunks if c[0] != b"ICCP"]
    riff = lambda name, body: name + struct.pack("<I", len(body)) + body + bytes(len(body) % 2)  # noqa: E731
    inner = data[12:]
    body = b"WEBP" + b"".join(riff(*c) for c in [head, *before]) + inner + b"".join(riff(*c) for c in after)
    return b"RIFF" + struct.pack("<I", len(body)) + body


def tiff(
    pixels: Pixels,
    photometric: int,
    *,
    order: str = "<",
    extra: dict[int, tuple[int, list[int]]] | None = None,
    big: bool = False,
    **blobs: bytes,
) -> bytes:
    """Pixels `[height, width, channels]`, 8, 16 or 32 bits, as an uncompressed TIFF of one strip."""
    high, wide, channels = pixels.shape
    bits = pixels.dtype.itemsize * 8
    raw = pixels.astype(pixels.dtype.newbyteorder(order)).tobytes()
    base = 16 if big else 8
    entries: dict[int, tuple[int, list[int] | bytes]] = {
        256: (4, [wide]),
        257: (4, [high]),
        258: (3, [bits] * channels),
        259: (3, [1]),
        262: (3, [photometric]),
        273: (4, [base]),
        277: (3, [channels]),
        278: (4, [high]),
        279: (4, [len(raw)]),
        **(extra or {}),
    }
    for tag, blob in blobs.items():
        entries[int(tag[1:])] = (7, blob)
    out, at = raw + bytes(len(raw) % 2), base + len(raw) + len(raw) % 2
    rows = b""
    for tag, (kind, values) in sorted(entries.items()):
        body = (
            values
            if isinstance(values, bytes)
            else struct.pack(f"{order}{len(values)}{'H' if kind == 3 else 'I'}", *values)
        )
        count, width = len(values), 8 if big else 4
        rows += struct.pack(order + ("HHQ" if big else "HHI"), tag, kind, count)
        if len(body) <= width:
            rows += body.ljust(width, b"\0")
        else:
            rows += struct.pack(order + ("Q" if big else "I"), at)
            out += body + bytes(len(body) % 2)
            at += len(body) + len(body) % 2
    mark = b"II" if order == "<" else b"MM"
    if big:
        head = mark + struct.pack(order + "HHHQ", 43, 8, 0, at)
        return head + out + struct.pack(order + "Q", len(entries)) + rows + bytes(8)
    head = mark + struct.pack(order + "HI", 42, at)
    return head + out + struct.pack(order + "H", len(entries)) + rows + bytes(4)


# ------------------------------------------------------------------ HEIC


def box(kind: bytes, *parts: bytes) -> bytes:
    body = b"".join(parts)
    return struct.pack(">I", len(body) + 8) + kind + body


def full(kind: bytes, version: int, flags: int, *parts: bytes) -> bytes:
    return box(kind, struct.pack(">I", version << 24 | flags), *parts)


@cache
def _hevc(raw: bytes, wide: int, high: int, bits: int) -> tuple[bytes, bytes]:
    """A picture coded as HEVC: its configuration (hvcC) and its data."""
    encoder: Any = av.CodecContext.create("libx265", "w")
    encoder.width, encoder.height, encoder.time_base = wide, high, Fraction(1, 25)
    encoder.pix_fmt = "yuv444p" if bits == 8 else "yuv444p10le"
    encoder.options = {
        "x265-params": "crf=4:keyint=1:range=full:colormatrix=bt709:log-level=none:info=0:pools=none"
        ":frame-threads=1"
    }
    shown = np.frombuffer(raw, np.uint8).reshape(high, wide, 3)
    red, green, blue = (shown[..., n] / 255 for n in range(3))
    luma = 0.2126 * red + 0.7152 * green + 0.0722 * blue
    planes = [luma, (blue - luma) / 1.8556 + 0.5, (red - luma) / 1.5748 + 0.5]
    top = 2**bits - 1
    frame: Any = av.VideoFrame(wide, high, encoder.pix_fmt)
    for plane, values in zip(frame.planes, planes, strict=True):
        whole = (values * top).round().clip(0, top).astype(np.uint8 if bits == 8 else "<u2")
        padded = np.zeros((high, plane.line_size // whole.dtype.itemsize), whole.dtype)
        padded[:, :wide] = whole
        plane.update(padded.tobytes())
    stream = b"".join(bytes(packet) for packet in [*encoder.encode(frame), *encoder.encode(None)])
    sets: dict[int, bytes] = {}
    data = b""
    for unit in stream.replace(b"\0\0\0\1", b"\0\0\1").split(b"\0\0\1")[1:]:
        kind = unit[0] >> 1 & 63
        if kind in (32, 33, 34):
            sets[kind] = unit
        elif kind < 32:
            data += struct.pack(">I", len(unit)) + unit
    level = sets[33].replace(b"\0\0\3", b"\0\0")[3:15]
    head = (
        b"\1"
        + level
        + struct.pack(">HBBBBHB", 0xF000, 0xFC, 0xFD | 2, 0xF8 | bits - 8, 0xF8 | bits - 8, 0, 0x0F)
    )
    arrays = b"".join(
        bytes([0x80 | kind]) + struct.pack(">HH", 1, len(unit)) + unit for kind, unit in sets.items()
    )
    return head + bytes([len(sets)]) + arrays, data


def heic(
    colours: Pixels = COLOURS,
    *,
    bits: int = 8,
    colr: tuple[bytes, ...] = (),
    turns: tuple[bytes, ...] = (),
    grid: bool = False,
    metadata: dict[bytes, bytes] | None = None,
    alpha: Pixels | None = None,
    brand: bytes = b"heic",
    claim: tuple[int, int] | None = None,
    tiles: int | None = None,
    primary: bytes | None = None,
) -> bytes:
    """A HEIC picture. `colr` are contents of colour boxes, `turns` whole boxes of rotation and mirroring."""
    whole = fields(colours)
    pieces = [whole]
    if grid:
        pieces = [whole[y : y + FIELD, x : x + FIELD] for y in (0, FIELD) for x in (0, FIELD, 2 * FIELD)]
        pieces = [np.repeat(np.repeat(piece, 2, 0), 2, 1) for piece in pieces]  # tiles of 64 pixels
    coded_pieces = [_hevc(piece.tobytes(), piece.shape[1], piece.shape[0], bits) for piece in pieces]
    scale = 2 if grid else 1
    size = claim or (whole.shape[1] * scale, whole.shape[0] * scale)
    properties: list[bytes] = []
    items: list[tuple[int, bytes, bytes, list[int]]] = []  # id, type, data, properties

    def prop(content: bytes) -> int:
        properties.append(content)
        return len(properties)

    ispe = lambda wide, high: full(b"ispe", 0, 0, struct.pack(">II", wide, high))  # noqa: E731
    shown = [prop(box(b"colr", body)) for body in colr] + [prop(turn) for turn in turns]
    references = b""
    if grid:
        head = struct.pack(">BBBBHH", 0, 0, 1, 2, *size)
        count = tiles or len(pieces)
        ids = [2 + n % len(pieces) for n in range(count)]
        items.append((1, b"grid", head, [prop(ispe(*size)), *shown]))
        for number, (config, data) in enumerate(coded_pieces):
            wide, high = pieces[number].shape[1::-1]
            items.append((2 + number, b"hvc1", data, [prop(box(b"hvcC", config)), prop(ispe(wide, high))]))
        references += box(b"dimg", struct.pack(f">HH{count}H", 1, count, *ids))
    else:
        config, data = coded_pieces[0]
        items.append((1, primary or b"hvc1", data, [prop(box(b"hvcC", config)), prop(ispe(*size)), *shown]))
    for number, (kind, body) in enumerate((metadata or {}).items()):
        items.append((20 + number, kind, body, []))
        references += box(b"cdsc", struct.pack(">HHH", 20 + number, 1, 1))
    if alpha is not None:
        config, data = _hevc(np.repeat(fields(alpha), 3, 2).tobytes(), WIDE, HIGH, 8)
        kind = full(b"auxC", 0, 0, b"urn:mpeg:mpegB:cicp:systems:auxiliary:alpha\0")
        items.append((30, b"hvc1", data, [prop(box(b"hvcC", config)), prop(ispe(WIDE, HIGH)), prop(kind)]))
        references += box(b"auxl", struct.pack(">HHH", 30, 1, 1))
    return _heif(brand, items, properties, references)


def _heif(
    brand: bytes, items: list[tuple[int, bytes, bytes, list[int]]], properties: list[bytes], references: bytes
) -> bytes:
    head = box(b"ftyp", brand, bytes(4), b"mif1", brand)

    def meta(at: int) -> bytes:
        entries, places = b"", b""
        for item, kind, body, _ in items:
            name = b"x\0" + (b"application/rdf+xml\0" if kind == b"mime" else b"")
            entries += full(b"infe", 2, 0, struct.pack(">HH4s", item, 0, kind), name)
            places += struct.pack(">HHHII", item, 0, 1, at, len(body))
            at += len(body)
        used = [item for item in items if item[3]]
        links = b"".join(
            struct.pack(">HB", item, len(numbers)) + bytes(0x80 | n if n > 90 else n for n in numbers)
            for item, _, _, numbers in used
        )
        return full(
            b"meta",
            0,
            0,
            full(b"hdlr", 0, 0, bytes(4), b"pict", bytes(13)),
            full(b"pitm", 0, 0, struct.pack(">H", 1)),
            full(b"iloc", 0, 0, b"\x44\0", struct.pack(">H", len(items)), places),
            full(b"iinf", 0, 0, struct.pack(">H", len(items)), entries),
            box(b"iprp", box(b"ipco", *properties), full(b"ipma", 0, 0, struct.pack(">I", len(used)), links)),
            full(b"iref", 0, 0, references),
        )

    begin = len(head) + len(meta(0)) + 8
    return head + meta(begin) + box(b"mdat", *(body for _, _, body, _ in items))


def nclx(primaries: int, transfer: int, matrix: int = 1, *, full_range: bool = True) -> bytes:
    return b"nclx" + struct.pack(">HHHB", primaries, transfer, matrix, 0x80 if full_range else 0)


# How EXIF's orientations are made of the picture: these turn an upright picture into the stored one.
def stored(orientation: int, colours: Pixels = COLOURS) -> Pixels:
    """The colours of a picture that is upright once `orientation` has been applied."""
    undo: dict[int, Callable[[Pixels], Pixels]] = {
        1: lambda a: a,
        2: lambda a: a[:, ::-1],
        3: lambda a: a[::-1, ::-1],
        4: lambda a: a[::-1],
        5: lambda a: a.swapaxes(0, 1),
        6: lambda a: np.rot90(a, 1),
        7: lambda a: a[::-1, ::-1].swapaxes(0, 1),
        8: lambda a: np.rot90(a, -1),
    }
    return np.ascontiguousarray(undo[orientation](colours))


IROT_IMIR: dict[int, tuple[bytes, ...]] = {
    1: (),
    2: (box(b"imir", b"\1"),),
    3: (box(b"irot", b"\2"),),
    4: (box(b"imir", b"\0"),),
    5: (box(b"irot", b"\1"), box(b"imir", b"\0")),
    6: (box(b"irot", b"\3"),),
    7: (box(b"irot", b"\3"), box(b"imir", b"\0")),
    8: (box(b"irot", b"\1"),),
}


# ------------------------------------------------------------------ the corpus

SHADES = np.array(  # grey, one channel
    [[[120], [60], [200]], [[240], [30], [150]]], dtype=np.uint8
)
GREY_COLOURS = np.repeat(SHADES, 3, 2)
OVER_WHITE = np.array([[[255], [128], [0]], [[255], [64], [255]]], dtype=np.uint8)
BLENDED = (COLOURS * (OVER_WHITE / 255) + 255 * (1 - OVER_WHITE / 255)).round().astype(np.uint8)
GREY_BLENDED = (GREY_COLOURS * (OVER_WHITE / 255) + 255 * (1 - OVER_WHITE / 255)).round().astype(np.uint8)
BOMB = zlib.compress(bytes(60 * 2**20), 9)
XMP = b"<x:xmpmeta xmlns:x='adobe:ns:meta/'><broken"

# EXIF that cannot be read, one way each.
BAD_EXIF = {
    "nothing": b"",
    "text": b"no EXIF at all",
    "only a header": b"II*\0",
    "a place outside": b"II*\0\xff\xff\xff\x7f",
    "too many entries": b"II*\0\x08\0\0\0\xff\xff" + bytes(30),
    "a circle": b"II*\0\x08\0\0\0\1\0\x69\x87\4\0\1\0\0\0\x08\0\0\0\x08\0\0\0",
    "orientation 0": exif(0),
    "orientation 9": exif(9),
    "orientation as a fraction": exif(6, kind=5),
    "half a value": exif(6)[:-8],
    "another byte order": b"MM*\0" + exif(6)[4:],
    "zeros": bytes(64),
    "noise": bytes(range(256)) * 40,
}
# Profiles that are no use for RGB pixels.
BAD_PROFILES = {
    "nothing": b"\0",
    "noise": bytes(range(256)) * 20,
    "cut": profile_of("p3")[:300],
    "a header only": profile_of("p3")[:128] + bytes(4),
    "for grey": icc("GRAY", gamma=2.2),
    "of no kind": profile_of("p3").replace(b"mntr", b"link", 1),
    "without curves": profile_of("p3").replace(b"TRC", b"XXX"),
    "places outside": profile_of("p3")[:172] + b"\x7f\xff\xff\xff" + profile_of("p3")[176:],
    "four million tags": profile_of("p3")[:128] + b"\x00\x40\x00\x00" + profile_of("p3")[132:],
}


def cases() -> list[Case]:
    """All of them; some hundred."""
    made = [
        *_modes(),
        *_orientations(),
        # libvips interpolates linear grey too coarsely.
        *(
            replace(
                case, reader="vips with profiles" if case.reader and "gamma 1.0" not in case.name else None
            )
            for case in _profiles()
        ),
        *_png_colours(),
        *_coded_colours(),
        *_metadata_damage(),
        *_bad_exif(),
        *_bad_profiles(),
        *_animations(),
        *_refusals(),
    ]
    assert len({case.name for case in made}) == len(made), "names must differ"
    return made


def _lossy(kind: str, **options: Any) -> bytes:
    full = {"JPEG": {"quality": 98, "subsampling": 0}, "WEBP": {"quality": 99, "method": 4}}
    full["AVIF"] = {"quality": 98, "subsampling": "4:4:4", "speed": 9}
    return saved(picture(), kind, **{**full[kind], **options})


def _modes() -> Iterator[Case]:
    grey16 = fields(SHADES).astype(np.uint16) * 257
    rgb = fields()
    rgba = fields(np.concatenate([COLOURS, OVER_WHITE], 2))
    la = fields(np.concatenate([SHADES, OVER_WHITE], 2))
    la16, rgba16, rgb16 = (a.astype(np.uint16) * 257 for a in (la, rgba, rgb))
    for name, pixels, bits, colours in [
        ("grey", fields(SHADES), 8, GREY_COLOURS),
        ("grey with alpha", la, 8, GREY_BLENDED),
        ("RGB", rgb, 8, COLOURS),
        ("RGBA", rgba, 8, BLENDED),
        ("grey of 16 bits", grey16, 16, GREY_COLOURS),
        ("grey with alpha of 16 bits", la16, 16, GREY_BLENDED),
        ("RGB of 16 bits", rgb16, 16, COLOURS),
        ("RGBA of 16 bits", rgba16, 16, BLENDED),
    ]:
        yield Case(f"PNG, {name}", png(pixels, bits=bits), colours=colours)
    for bits in (1, 2, 4):
        top = 2**bits - 1
        few = np.array([[[0], [top], [top // 2]], [[top], [0], [top]]], np.uint8)
        yield Case(
            f"PNG, grey of {bits} bits",
            png(fields(few), bits=bits),
            colours=np.repeat(few * (255 // top), 3, 2),
        )
    key = chunk(b"tRNS", struct.pack(">H", 60))
    holes = np.where(SHADES == 60, 255, GREY_COLOURS).astype(np.uint8)
    yield Case("PNG, grey with a key", png(fields(SHADES), before=key), colours=holes)
    key16 = chunk(b"tRNS", struct.pack(">H", 60 * 257))
    yield Case("PNG, grey of 16 bits with a key", png(grey16, bits=16, before=key16), colours=holes)
    keyed = COLOURS.copy()
    keyed[0, 0] = 255
    key = chunk(b"tRNS", struct.pack(">3H", 200, 120, 90))
    yield Case("PNG, RGB with a key", png(rgb, before=key), colours=keyed)
    palette = chunk(b"PLTE", COLOURS.tobytes())
    index = fields(np.arange(6, dtype=np.uint8).reshape(2, 3, 1))
    yield Case("PNG, palette", png(index, colour=3, before=palette), colours=COLOURS)
    yield Case("PNG, palette of 4 bits", png(index, bits=4, colour=3, before=palette), colours=COLOURS)
    tables = palette + chunk(b"tRNS", OVER_WHITE.tobytes())
    yield Case("PNG, palette with alpha", png(index, colour=3, before=tables), colours=BLENDED)
    for name, options in {"optimised": {"optimize": True}, "level 0": {"compress_level": 0}}.items():
        yield Case(f"PNG, {name}", saved(picture(), "PNG", **options), colours=COLOURS)

    for name, options in {
        "4:4:4": {},
        "4:2:2": {"subsampling": 1},
        "4:2:0": {"subsampling": 2},
        "progressive": {"progressive": True},
        "quality 75": {"quality": 75},
        "restart markers": {"restart_marker_rows": 1},
        "optimised": {"optimize": True},
        "RGB kept": {"keep_rgb": True},
    }.items():
        yield Case(f"JPEG, {name}", _lossy("JPEG", **options), colours=COLOURS)
    yield Case(
        "JPEG, grey", saved(Image.fromarray(fields(SHADES)[..., 0]), "JPEG", quality=98), colours=GREY_COLOURS
    )
    yield Case("JPEG, CMYK", saved(picture("CMYK"), "JPEG", quality=98), colours=COLOURS, reader="magick")
    jpeg = _lossy("JPEG")
    yield Case("JPEG, no JFIF", jpeg[:2] + jpeg[20:], colours=COLOURS)

    yield Case("WebP, lossy", _lossy("WEBP"), colours=COLOURS)
    yield Case("WebP, lossless", saved(picture(), "WEBP", lossless=True), colours=COLOURS)
    yield Case("WebP, near lossless", saved(picture(), "WEBP", lossless=True, quality=60), colours=COLOURS)
    shaped = Image.fromarray(rgba)
    yield Case("WebP, lossless with alpha", saved(shaped, "WEBP", lossless=True, exact=True), colours=BLENDED)
    yield Case("WebP, lossy with alpha", saved(shaped, "WEBP", quality=99, exact=True), colours=BLENDED)

    yield Case("GIF, palette", saved(picture("P"), "GIF"), colours=COLOURS)
    yield Case("GIF, interlaced", saved(picture("P"), "GIF", interlace=True), colours=COLOURS)
    yield Case("GIF, not interlaced", saved(picture("P"), "GIF", interlace=False), colours=COLOURS)
    holed = Image.fromarray(index[..., 0], "P")
    holed.putpalette(COLOURS.tobytes())
    holey = COLOURS.copy()
    holey[0, 2] = 255
    yield Case("GIF, transparent", saved(holed, "GIF", transparency=2), colours=holey)
    yield Case("GIF, grey", saved(Image.fromarray(fields(SHADES)[..., 0]), "GIF"), colours=GREY_COLOURS)
    for mode in ("RGB", "P", "L"):
        grey = mode == "L"
        shown = Image.fromarray(fields(SHADES)[..., 0]) if grey else picture(mode)
        yield Case(
            f"BMP, {mode}", saved(shown, "BMP"), colours=GREY_COLOURS if grey else COLOURS, reader="magick"
        )
    yield Case(
        "BMP of 32 bits", saved(shaped, "BMP"), colours=COLOURS, reader=None
    )  # the fourth byte is unused
    masks = struct.pack("<4I", 0xFF0000, 0xFF00, 0xFF, 0xFF000000) + b"BGRs" + bytes(48)
    head = struct.pack(
        "<IIIIiiHHIIiiII", 122 + 4 * WIDE * HIGH, 0, 122, 108, WIDE, -HIGH, 1, 32, 3, 0, 0, 0, 0, 0
    )
    yield Case(
        "BMP, RGBA",
        b"BM" + head + masks + rgba[..., [2, 1, 0, 3]].tobytes(),
        colours=BLENDED,
        reader="magick",
    )
    yield Case(
        "BMP, black and white",
        saved(picture("L").point(lambda v: 255 * (v > 127)).convert("1"), "BMP"),
        reader="magick",
    )
    rows = rgb[::-1, :, ::-1].tobytes()
    os2 = b"BM" + struct.pack("<IIIIHHHH", 26 + len(rows), 0, 26, 12, WIDE, HIGH, 1, 24) + rows
    yield Case("BMP of OS/2", os2, colours=COLOURS, reader="magick")
    upside = b"BM" + struct.pack(
        "<IIIIiiHHIIiiII", 54 + 3 * WIDE * HIGH, 0, 54, 40, WIDE, -HIGH, 1, 24, 0, 0, 0, 0, 0, 0
    )
    yield Case("BMP, top first", upside + rgb[..., ::-1].tobytes(), colours=COLOURS, reader="magick")

    for bits in (8, 4):
        row = b"".join(bytes([FIELD, shade << 4 | shade if bits == 4 else shade]) for shade in range(3))
        lower = b"".join(bytes([FIELD, shade << 4 | shade if bits == 4 else shade]) for shade in (3, 4))
        # The last field of the lower rows is literal, in every second row behind a move of nothing.
        literal = b"\0" + bytes([FIELD]) + (b"\x55" * (FIELD // 2) if bits == 4 else b"\x05" * FIELD)
        moved = (lower + b"\0\x02\0\0" + literal + b"\0\0" + lower + literal + b"\0\0") * (FIELD // 2)
        yield Case(
            f"BMP, runs of {bits} bits",
            bmp_of_runs(bits, moved + (row + b"\0\0") * FIELD + b"\0\x01"),
            colours=COLOURS,
            reader="magick",
        )
    empty = np.full((2, 1, 3), COLOURS[0, 0])
    yield Case(
        "BMP, runs that leave lines out",
        bmp_of_runs(8, b"\0\0" * FIELD + b"\0\x01"),
        colours=empty,
        reader=None,
    )

    for mode in ("RGB", "L", "P", "1", "CMYK", "LAB", "I;16", "LA", "RGBA"):
        shown = {"L": Image.fromarray(fields(SHADES)[..., 0]), "RGBA": shaped, "LA": Image.fromarray(la)}.get(
            mode
        )
        shown = shown or picture(mode)
        known = {
            "L": GREY_COLOURS,
            "RGBA": BLENDED,
            "LA": GREY_BLENDED,
            "RGB": COLOURS,
            "P": COLOURS,
            "CMYK": COLOURS,
            "LAB": COLOURS,
        }.get(mode)
        # libvips takes Lab to be relative to D65, but TIFF's is relative to D50.
        reader = {"CMYK": "magick", "LAB": None}.get(mode, "vips")
        near = 4 if mode == "LAB" else 2
        for pressed in ("raw", "tiff_lzw", "tiff_deflate", "packbits"):
            if (mode, pressed) not in [("LAB", "tiff_lzw"), ("LAB", "tiff_deflate"), ("LAB", "packbits")]:
                data = saved(shown, "TIFF", compression=pressed)
                yield Case(f"TIFF, {mode}, {pressed}", data, colours=known, reader=reader, near=near)
    yield Case("TIFF, JPEG inside", saved(picture(), "TIFF", compression="jpeg", quality=98), colours=COLOURS)
    yield Case("TIFF, fax", saved(picture("1"), "TIFF", compression="group4"))
    yield Case("TIFF, big", saved(picture(), "TIFF", big_tiff=True), colours=COLOURS)
    for order, name in (("<", "little endian"), (">", "big endian")):
        for big in (False, True):
            bigness = "BigTIFF" if big else "TIFF"
            yield Case(
                f"{bigness}, RGB of 16 bits, {name}", tiff(rgb16, 2, order=order, big=big), colours=COLOURS
            )
            yield Case(f"{bigness}, RGB, {name}", tiff(rgb, 2, order=order, big=big), colours=COLOURS)
        yield Case(f"TIFF, grey of 16 bits, {name}", tiff(grey16, 1, order=order), colours=GREY_COLOURS)
        white_is_zero = tiff(255 - fields(SHADES), 0, order=order)
        yield Case(f"TIFF, white is zero, {name}", white_is_zero, colours=GREY_COLOURS)
        yield Case(f"TIFF, RGBA, {name}", tiff(rgba, 2, order=order, extra={338: (3, [2])}), colours=BLENDED)
        loose = tiff(rgba, 2, order=order, extra={338: (3, [0])})
        yield Case(f"TIFF, RGB and an unknown channel, {name}", loose, colours=COLOURS, reader=None)

    planes = np.moveaxis(rgb16, 2, 0).reshape(3 * HIGH, WIDE, 1)
    own = {257: (4, [HIGH]), 277: (3, [3]), 278: (4, [HIGH])}
    apart = {258: (3, [16] * 3), 284: (3, [2]), 273: (4, [8 + n * WIDE * HIGH * 2 for n in range(3)])}
    sixteen = tiff(planes, 2, extra={**own, **apart, 279: (4, [WIDE * HIGH * 2] * 3)})
    yield Case("TIFF, RGB of 16 bits in planes", sixteen, colours=COLOURS)
    luma = np.asarray(picture().convert("YCbCr"))
    four = [luma[row::2, column::2, :1] for row in (0, 1) for column in (0, 1)]
    units = np.concatenate([*four, luma[::2, ::2, 1:]], 2).reshape(HIGH // 2, WIDE * 3, 1)
    halved = {**own, 256: (4, [WIDE]), 258: (3, [8] * 3), 530: (3, [2, 2])}
    half = tiff(units, 6, extra=halved)
    yield Case("TIFF, YCbCr 4:2:0", half, colours=COLOURS, reader=None)  # others refuse it, or show Y as red
    yield Case("AVIF, 4:4:4", _lossy("AVIF"), colours=COLOURS)
    yield Case("AVIF, 4:2:0", _lossy("AVIF", subsampling="4:2:0"), colours=COLOURS)
    yield Case("AVIF, limited range", _lossy("AVIF", range="limited"), colours=COLOURS, near=3)
    yield Case(
        "AVIF, alpha", saved(shaped, "AVIF", quality=98, subsampling="4:4:4", speed=9), colours=BLENDED
    )
    grey = Image.fromarray(fields(SHADES)[..., 0])
    yield Case("AVIF, grey", saved(grey, "AVIF", quality=98, speed=9), colours=GREY_COLOURS)
    yield Case("HEIC", heic(), colours=COLOURS)
    yield Case("HEIC of 10 bits", heic(bits=10), colours=COLOURS)
    yield Case("HEIC of six tiles", heic(grid=True), colours=COLOURS, size=(2 * WIDE, 2 * HIGH))
    yield Case("HEIC, alpha", heic(alpha=OVER_WHITE), colours=BLENDED)
    yield Case("HEIC, brand mif1", heic(brand=b"mif1"), colours=COLOURS)


def _orientations() -> Iterator[Case]:
    for turn in range(1, 9):
        shown = Image.fromarray(fields(stored(turn)))
        prefixed = b"Exif\0\0" + exif(turn)
        jpeg = saved(shown, "JPEG", quality=98, subsampling=0)
        yield Case(f"JPEG, orientation {turn}", with_segments(jpeg, segment(0xE1, prefixed)), colours=COLOURS)
        if turn in (3, 6):
            byte = with_segments(jpeg, segment(0xE1, b"Exif\0\0" + exif(turn, kind=1)))
            yield Case(f"JPEG, orientation {turn} as a byte", byte, colours=COLOURS)
        chunked = png(fields(stored(turn)), before=chunk(b"eXIf", exif(turn)))
        yield Case(f"PNG, orientation {turn}", chunked, colours=COLOURS, reader=None)
        data = saved(shown, "WEBP", lossless=True, exif=prefixed)
        yield Case(f"WebP, orientation {turn}", data, colours=COLOURS)
        yield Case(
            f"TIFF, orientation {turn}",
            tiff(fields(stored(turn)), 2, extra={274: (3, [turn])}),
            colours=COLOURS,
        )
        entry = Image.Exif()
        entry[0x112] = turn
        data = saved(shown, "AVIF", quality=98, subsampling="4:4:4", speed=9, exif=entry)
        yield Case(f"AVIF, orientation {turn}", data, colours=COLOURS)
        yield Case(f"HEIC, orientation {turn}", heic(stored(turn), turns=IROT_IMIR[turn]), colours=COLOURS)
        both = heic(stored(turn), turns=IROT_IMIR[turn], metadata={b"Exif": bytes(4) + exif(turn)})
        if turn in (3, 6):
            yield Case(f"HEIC, orientation {turn} said twice", both, colours=COLOURS)


def _profiles() -> Iterator[Case]:
    for space in ("srgb", "p3", "adobe", "bt2020", "prophoto"):
        values = in_space(space)
        pixels, profile = fields(bytes_of(values)), profile_of(space)
        shown = Image.fromarray(pixels)
        for kind, options in {
            "JPEG": {"quality": 100, "subsampling": 0},
            "WEBP": {"lossless": True},
            "PNG": {},
            "TIFF": {},
            "AVIF": {"quality": 100, "subsampling": "4:4:4", "speed": 9},
        }.items():
            data = saved(shown, kind, icc_profile=profile, **options)
            coarse = {"AVIF": 7, "JPEG": 4}.get(kind, 2) if space in ("adobe", "bt2020", "prophoto") else 2
            yield Case(f"{kind}, profile {space}", data, colours=COLOURS, near=coarse)
        wide = (values * 65535).round().astype(np.uint16)
        sixteen = png(fields(wide), bits=16, before=iccp(profile))
        yield Case(f"PNG of 16 bits, profile {space}", sixteen, colours=COLOURS)
        yield Case(
            f"TIFF of 16 bits, profile {space}", tiff(fields(wide), 2, t34675=profile), colours=COLOURS
        )
        shaped = np.concatenate([bytes_of(values), OVER_WHITE], 2)
        yield Case(
            f"PNG with alpha, profile {space}", png(fields(shaped), before=iccp(profile)), colours=BLENDED
        )
        palette = chunk(b"PLTE", bytes_of(values).tobytes())
        index = fields(np.arange(6, dtype=np.uint8).reshape(2, 3, 1))
        data = png(index, colour=3, before=iccp(profile) + palette)
        yield Case(f"PNG with a palette, profile {space}", data, colours=COLOURS)
        data = heic(bytes_of(values), bits=10, colr=(b"prof" + profile,))
        yield Case(f"HEIC, profile {space}", data, colours=COLOURS, near=6 if space == "prophoto" else 2)
    split = icc("RGB ", "p3")
    half = len(split) // 2
    pieces = [
        segment(0xE2, b"ICC_PROFILE\0" + bytes([n + 1, 2]) + part)
        for n, part in enumerate((split[:half], split[half:]))
    ]
    plain = saved(Image.fromarray(fields(bytes_of(in_space("p3")))), "JPEG", quality=100, subsampling=0)
    yield Case("JPEG, profile in two pieces", with_segments(plain, *pieces), colours=COLOURS)
    yield Case(
        "JPEG, profile in two pieces, the last first",
        with_segments(plain, *pieces[::-1]),
        colours=COLOURS,
        reader=None,
    )
    for gamma in (1.0, 1.8, 2.2):
        shade = coded(light(SHADES / 255, None), gamma)
        profile = icc("GRAY", gamma=gamma)
        data = png(fields(bytes_of(shade)), before=iccp(profile))
        if gamma > 1:
            yield Case(f"PNG, grey of gamma {gamma}", data, colours=GREY_COLOURS)
        deep = fields((shade * 65535).round().astype(np.uint16))
        data = png(deep, bits=16, before=iccp(profile))
        yield Case(f"PNG, grey of 16 bits and gamma {gamma}", data, colours=GREY_COLOURS)
        yield Case(
            f"TIFF, grey of 16 bits and gamma {gamma}", tiff(deep, 1, t34675=profile), colours=GREY_COLOURS
        )
    shown = Image.fromarray(fields(bytes_of(coded(light(SHADES / 255, None), 1.8)))[..., 0])
    data = saved(shown, "JPEG", quality=100, icc_profile=icc("GRAY", gamma=1.8))
    yield Case("JPEG, grey of gamma 1.8", data, colours=GREY_COLOURS)


def _png_colours() -> Iterator[Case]:
    """gAMA, cHRM, sRGB, cICP; what stands first in the standard wins."""
    p3 = fields(bytes_of(in_space("p3")))
    for name, pixels, chunks, reader in [
        ("gAMA of sRGB", fields(), gama(0.45455), "magick"),
        ("gAMA and cHRM of sRGB", fields(), gama(0.45455) + chrm("srgb"), "magick"),
        ("gAMA of 1.8", fields(bytes_of(in_space("srgb", 1.8))), gama(1 / 1.8), None),
        ("gAMA of 0", fields(), gama(0), None),
        ("gAMA of 4 billion", fields(), chunk(b"gAMA", b"\xff" * 4), None),
        ("cHRM and gAMA of P3", fields(bytes_of(in_space("p3"))), gama(0.45455) + chrm("p3"), None),
        (
            "cHRM and gAMA of Adobe RGB",
            fields(bytes_of(in_space("adobe", 1.8))),
            gama(1 / 1.8) + chrm("adobe"),
            None,
        ),
        ("cHRM of zeros", fields(), gama(0.45455) + chunk(b"cHRM", bytes(32)), None),
        ("cHRM of ones", fields(), gama(0.45455) + chunk(b"cHRM", b"\xff" * 32), None),
        ("sRGB before gAMA", fields(), chunk(b"sRGB", b"\0") + gama(0.3) + chrm("p3"), "vips"),
        ("iCCP before sRGB", p3, iccp(profile_of("p3")) + chunk(b"sRGB", b"\0"), "vips with profiles"),
        ("iCCP before gAMA", p3, iccp(profile_of("p3")) + gama(1.0), "vips with profiles"),
        ("cICP of Display P3", p3, chunk(b"cICP", bytes([12, 13, 0, 1])), None),
        ("cICP before iCCP", p3, chunk(b"cICP", bytes([12, 13, 0, 1])) + iccp(profile_of("adobe")), None),
        ("cICP of sRGB", fields(), chunk(b"cICP", bytes([1, 13, 0, 1])), "vips"),
        ("cICP not specified", fields(), chunk(b"cICP", bytes([2, 2, 0, 1])), "vips"),
        ("cICP of BT.709", fields(), chunk(b"cICP", bytes([1, 1, 0, 1])), "vips"),
        ("cICP of a wrong length", fields(), chunk(b"cICP", b"\1\2"), "vips"),
        ("cICP with a matrix", fields(), chunk(b"cICP", bytes([9, 13, 9, 1])), "vips"),
    ]:
        yield Case(f"PNG, {name}", png(pixels, before=chunks), colours=COLOURS, reader=reader)
    for transfer, name in ((16, "PQ"), (18, "HLG")):
        data = png(fields(), before=chunk(b"cICP", bytes([9, transfer, 0, 1])))
        yield Case(f"PNG, cICP of {name}", data, code="unsupported_image")


def _coded_colours() -> Iterator[Case]:
    """The numbers of colour spaces in HEIC and AVIF; libvips ignores them."""
    avif = _lossy("AVIF", quality=100)
    at = avif.index(b"colrnclx") + 8
    for name, space, gamma, codes in [
        ("Display P3", "p3", None, (12, 13)),
        ("BT.2020", "bt2020", None, (9, 1)),
        ("sRGB", "srgb", None, (1, 13)),
        ("not specified", "srgb", None, (2, 2)),
        ("gamma 2.2", "srgb", 2.2, (1, 4)),
        ("unknown", "srgb", None, (99, 99)),
    ]:
        pixels = bytes_of(in_space(space, gamma))
        data = heic(pixels, bits=10, colr=(nclx(*codes),))
        yield Case(
            f"HEIC, nclx {name}",
            data,
            colours=COLOURS,
            reader="vips" if space == "srgb" and not gamma else None,
        )
        shown = saved(Image.fromarray(fields(pixels)), "AVIF", quality=100, subsampling="4:4:4", speed=9)
        data = shown[:at] + struct.pack(">HH", *codes) + shown[at + 4 :]
        assert shown[at - 8 : at] == b"colrnclx"
        yield Case(
            f"AVIF, nclx {name}", data, colours=COLOURS, reader=None, near=3 if space == "bt2020" else 2
        )
    p3 = bytes_of(in_space("p3"))
    for order, boxes in {
        "profile first": (b"prof" + profile_of("p3"), nclx(1, 13)),
        "profile last": (nclx(1, 13), b"prof" + profile_of("p3")),
    }.items():
        data = heic(p3, bits=10, colr=boxes)
        yield Case(f"HEIC, profile beside nclx, {order}", data, colours=COLOURS, reader="vips with profiles")
    yield Case(
        "HEIC of tiles, Display P3",
        heic(p3, grid=True, bits=10, colr=(nclx(12, 13),)),
        colours=COLOURS,
        reader=None,
        size=(2 * WIDE, 2 * HIGH),
    )
    for transfer, name in ((16, "PQ"), (18, "HLG")):
        yield Case(f"HEIC in {name}", heic(colr=(nclx(9, transfer, 9),)), code="unsupported_image")
        hdr = avif[:at] + struct.pack(">HH", 9, transfer) + avif[at + 4 :]
        yield Case(f"AVIF in {name}", hdr, code="unsupported_image")


def _metadata_damage() -> Iterator[Case]:
    rgb = fields()
    control = chunk(b"acTL", struct.pack(">II", 2, 0))
    frame = struct.pack(">IIIIIHHBB", 0, WIDE, HIGH, 0, 0, 1, 10, 0, 0)
    for name, chunks in {
        "two million characters": chunk(b"tEXt", b"Comment\0" + b"x" * 2_000_000),
        "five texts of a million": chunk(b"tEXt", b"Comment\0" + b"x" * 1_000_000) * 5,
        "a bomb of text": chunk(b"zTXt", b"a\0\0" + BOMB),
        "a bomb of international text": chunk(b"iTXt", b"a\0\1\0\0\0" + BOMB),
        "a bomb as profile": chunk(b"iCCP", b"a\0\0" + BOMB),
        "text that does not inflate": chunk(b"zTXt", b"a\0\0" + b"\xff" * 40),
        "text of an unknown method": chunk(b"zTXt", b"a\0\7" + zlib.compress(b"x")),
        "text without an end": chunk(b"tEXt", b"x" * 200),
        "international text cut": chunk(b"iTXt", b"a\0\1"),
        "XMP": chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + XMP),
        "IPTC as a raw profile": chunk(
            b"zTXt", b"Raw profile type iptc\0\0" + zlib.compress(b"\niptc\n 9\nzz")
        ),
        "EXIF as a raw profile": chunk(
            b"zTXt", b"Raw profile type exif\0\0" + zlib.compress(b"\nexif\n 9\nzz")
        ),
        "a resolution of one byte": chunk(b"pHYs", b"\1"),
        "a background of one byte": chunk(b"bKGD", b"\1"),
        "a background of red": chunk(b"bKGD", struct.pack(">3H", 255, 0, 0)),
        "a time of zeros": chunk(b"tIME", bytes(7)),
        "a time of one byte": chunk(b"tIME", b"\1"),
        "a transparent colour cut": chunk(b"tRNS", b"\0"),
        "a wrong checksum of text": chunk(b"tEXt", b"a\0b", 1),
        "a wrong checksum of gamma": chunk(b"gAMA", struct.pack(">I", 20_000), 1),
        "a wrong checksum of EXIF": chunk(b"eXIf", exif(6), 1),
        "a wrong checksum of the profile": chunk(b"iCCP", b"x\0\0" + zlib.compress(profile_of("adobe")), 1),
        "a wrong checksum of transparency": chunk(b"tRNS", struct.pack(">3H", 200, 120, 90), 1),
        "sBIT of zeros": chunk(b"sBIT", b"\0\0\0"),
        "an unknown chunk": chunk(b"abCd", bytes(5000)),
        "a thousand unknown chunks": chunk(b"abCd", b"x") * 1000,
        "no frames": chunk(b"acTL", bytes(8)),
        "a million frames": chunk(b"acTL", struct.pack(">II", 1_000_000, 0)),
        "frame control cut": control + chunk(b"fcTL", frame[:9]),
        "a frame outside": control
        + chunk(b"fcTL", struct.pack(">IIIIIHHBB", 0, WIDE, HIGH, 9, 9, 1, 9, 0, 0)),
        "animation control cut": chunk(b"acTL", b"\0"),
        "animation control twice": control * 2 + chunk(b"fcTL", frame),
    }.items():
        strict = (
            "checksum" in name or name in ("a transparent colour cut", "a bomb as profile") or "frame" in name
        )
        reader = None if strict or "raw profile" in name else "vips"
        yield Case(f"PNG with {name}", png(rgb, before=chunks), colours=COLOURS, reader=reader)
    for name, chunks in {
        "text": chunk(b"tEXt", b"a\0" + b"x" * 2_000_000),
        "EXIF": chunk(b"eXIf", b"\xff" * 99),
        "frames cut": chunk(b"fdAT", b"\0"),
        "a bomb of text": chunk(b"zTXt", b"a\0\0" + BOMB),
    }.items():
        yield Case(f"PNG, {name} after its pixels", png(rgb, after=chunks), colours=COLOURS)
    whole = png(rgb)
    yield Case("PNG without an end", whole[:-12], colours=COLOURS, reader=None)
    yield Case("PNG, garbage behind", whole + bytes(range(256)) * 99, colours=COLOURS)

    jpeg = _lossy("JPEG")
    for name, segments in {
        "a comment of 64 KB": [segment(0xFE, b"x" * 65533)],
        "XMP": [segment(0xE1, b"http://ns.adobe.com/xap/1.0/\0" + XMP)],
        "extended XMP cut": [segment(0xE1, b"http://ns.adobe.com/xmp/extension/\0" + b"A" * 10)],
        "IPTC": [segment(0xED, b"Photoshop 3.0\0" + b"8BIM\4\4\0\0\xff\xff\xff\xff")],
        "IPTC cut": [segment(0xED, b"Photoshop 3.0\0" + b"8BIM\4")],
        "MPF of noise": [segment(0xE2, b"MPF\0" + b"\xff" * 60)],
        "MPF of a header": [segment(0xE2, b"MPF\0II*\0\x08\0\0\0\1\0")],
        "MPF to nowhere": [segment(0xE2, b"MPF\0II*\0\x08\0\0\0\1\0\2\xb0\7\0\x20\0\0\0\xff\xff\xff\x7f")],
        "a profile of one byte": [segment(0xE2, b"ICC_PROFILE\0\1")],
        "half a profile": [segment(0xE2, b"ICC_PROFILE\0\1\2" + profile_of("adobe")[:99])],
        "FlashPix": [segment(0xE2, b"FPXR\0" + bytes(5))],
        "Ducky": [segment(0xEC, b"Ducky\0\1")],
        "an unknown segment": [segment(0xEA, bytes(1000))],
        "a thousand comments": [segment(0xFE, b"x")] * 1000,
        "JFXX": [segment(0xE0, b"JFXX\0\x10" + b"\xff" * 30)],
        "Adobe cut": [segment(0xEE, b"Adobe\0\x64")],
        "an empty APP1": [segment(0xE1, b"")],
        "an empty APP2": [segment(0xE2, b"")],
    }.items():
        data = with_segments(jpeg, *segments)
        yield Case(f"JPEG with {name}", data, colours=COLOURS, reader=None if "profile" in name else "vips")
    short = jpeg[:2] + segment(0xE0, b"JFIF\0\1") + jpeg[20:]
    yield Case("JPEG with JFIF cut", short, colours=COLOURS)
    thumb = jpeg[:2] + segment(0xE0, jpeg[6:18] + b"\x40\x40" + bytes(64)) + jpeg[20:]
    yield Case("JPEG with a thumbnail cut", thumb, colours=COLOURS)
    yield Case("JPEG, garbage behind", jpeg + bytes(range(256)) * 99, colours=COLOURS)
    # A phone's moving photo: what looks like scans is in its video.
    yield Case("JPEG, a video behind", jpeg + b"\0\0\0\x18ftypmp42" + b"\xff\xda\x07" * 999, colours=COLOURS)
    yield Case("JPEG, another JPEG behind", jpeg + saved(Image.new("RGB", (999, 9)), "JPEG"), colours=COLOURS)
    yield Case("JPEG, fill bytes", jpeg[:2] + b"\xff" * 20 + jpeg[2:], colours=COLOURS)

    webp = saved(picture(), "WEBP", lossless=True)
    for name, chunks in {
        "XMP": [(b"XMP ", XMP)],
        "an unknown chunk": [(b"abcd", bytes(999))],
        "a thousand unknown chunks": [(b"abcd", b"x")] * 1000,
        "an empty EXIF": [(b"EXIF", b"")],
        "XMP of odd length": [(b"XMP ", b"<x>")],
    }.items():
        yield Case(f"WebP with {name}", webp_with(webp, *chunks), colours=COLOURS)
    yield Case("WebP, garbage behind", webp + bytes(range(256)) * 9, colours=COLOURS)

    for name, extra in {
        "XMP": {"t700": XMP},
        "IPTC": {"t33723": b"\xff" * 50},
        "Photoshop": {"t34377": b"8BIM" + b"\xff" * 20},
        "an unknown entry": {"t60000": bytes(5000)},
        "text": {"t270": b"x" * 100_000},
    }.items():
        yield Case(f"TIFF with {name}", tiff(fields(), 2, **extra), colours=COLOURS)
    for name, entries in {
        "EXIF to nowhere": {34665: (4, [0x7FFFFFFF])},
        "EXIF to itself": {34665: (4, [8])},
        "pages to nowhere": {330: (4, [0x7FFFFFFF])},
    }.items():
        yield Case(f"TIFF with {name}", tiff(fields(), 2, extra=entries), colours=COLOURS)
    yield Case("TIFF, garbage behind", tiff(fields(), 2) + bytes(1001), colours=COLOURS)
    yield Case("TIFF, next page to nowhere", tiff(fields(), 2)[:-4] + b"\xff\xff\xff\x7f", colours=COLOURS)

    for name, items in {
        "XMP": {b"mime": XMP},
        "an unknown item": {b"abcd": bytes(99)},
        "an empty EXIF": {b"Exif": b""},
        "EXIF to nowhere": {b"Exif": b"\xff\xff\xff\xff" + exif(6)},
    }.items():
        yield Case(f"HEIC with {name}", heic(metadata=items), colours=COLOURS, reader=None)
    yield Case("HEIC, garbage behind", heic() + box(b"free", bytes(999)), colours=COLOURS)
    short = b"\0\0\0\3abcdefgh"
    yield Case("HEIC, no box behind", heic() + short, colours=COLOURS, reader=None)
    yield Case("AVIF, no box behind", _lossy("AVIF") + short, colours=COLOURS, reader=None)
    gif, bmp = saved(picture("P"), "GIF"), saved(picture(), "BMP")
    at = 13 + 3 * 2 ** ((gif[10] & 7) + 1)
    for name, block in {
        "a comment": b"!\xfe\x05hello\0",
        "a comment cut in the middle": b"!\xfe\0",
        "an unknown extension": b"!\x77\0",
        "a short control": b"!\xf9\1\1\0",
        "a loop of no length": b"!\xff\x0bNETSCAPE2.0\0",
    }.items():
        reader = None if name in ("an unknown extension", "a short control") else "vips"
        yield Case(f"GIF with {name}", gif[:at] + block + gif[at:], colours=COLOURS, reader=reader)
    yield Case("GIF, garbage behind", gif + bytes(range(256)), colours=COLOURS)
    yield Case("GIF without an end", gif[:-1], colours=COLOURS)
    yield Case("BMP, garbage behind", bmp + bytes(999), colours=COLOURS, reader=None)


def _bad_exif() -> Iterator[Case]:
    jpeg, webp = _lossy("JPEG"), saved(picture(), "WEBP", lossless=True)
    for name, data in BAD_EXIF.items():
        # What a reader makes of a half-readable orientation differs; upright is right.
        yield Case(
            f"JPEG, EXIF: {name}",
            with_segments(jpeg, segment(0xE1, b"Exif\0\0" + data)),
            colours=COLOURS,
            reader=None,
        )
        yield Case(
            f"PNG, EXIF: {name}", png(fields(), before=chunk(b"eXIf", data)), colours=COLOURS, reader=None
        )
        yield Case(f"WebP, EXIF: {name}", webp_with(webp, (b"EXIF", data)), colours=COLOURS, reader=None)
        yield Case(
            f"HEIC, EXIF: {name}", heic(metadata={b"Exif": bytes(4) + data}), colours=COLOURS, reader=None
        )


def _bad_profiles() -> Iterator[Case]:
    jpeg, webp = _lossy("JPEG"), saved(picture(), "WEBP", lossless=True)
    for name, data in BAD_PROFILES.items():
        yield Case(
            f"JPEG, profile: {name}",
            with_segments(jpeg, segment(0xE2, b"ICC_PROFILE\0\1\1" + data)),
            colours=COLOURS,
            reader=None,
        )
        yield Case(f"PNG, profile: {name}", png(fields(), before=iccp(data)), colours=COLOURS, reader=None)
        yield Case(f"WebP, profile: {name}", webp_with(webp, (b"ICCP", data)), colours=COLOURS, reader=None)
        yield Case(f"TIFF, profile: {name}", tiff(fields(), 2, t34675=data), colours=COLOURS, reader=None)
        yield Case(f"HEIC, profile: {name}", heic(colr=(b"prof" + data,)), colours=COLOURS, reader=None)
    cut = chunk(b"iCCP", b"x\0\0" + zlib.compress(profile_of("p3"))[:200])
    yield Case("PNG, profile: cut in its stream", png(fields(), before=cut), colours=COLOURS, reader=None)
    grey = png(fields(SHADES), before=iccp(profile_of("p3")))
    yield Case("PNG, grey with a profile for RGB", grey, colours=GREY_COLOURS, reader=None)
    cmyk = saved(picture("CMYK"), "JPEG", quality=98, icc_profile=profile_of("p3"))
    yield Case("JPEG, CMYK with a profile for RGB", cmyk, colours=COLOURS, reader=None)


def _animations() -> Iterator[Case]:
    other = Image.new("RGB", SIZE, (255, 0, 0))
    for kind, options in {
        "GIF": {},
        "WEBP": {"lossless": True},
        "PNG": {},
        "AVIF": {"quality": 98, "subsampling": "4:4:4", "speed": 9},
        "TIFF": {},
    }.items():
        for count in (2, 5):
            first = picture("P") if kind == "GIF" else picture()
            rest = [other] * (count - 1)
            data = saved(first, kind, save_all=True, append_images=rest, **options)
            reader = None if kind == "AVIF" else "vips"
            yield Case(f"{kind}, {count} pictures", data, colours=COLOURS, reader=reader)
    red = chunk(b"fdAT", bytes(4) + zlib.compress(b""))
    hidden = png(fields(), before=chunk(b"acTL", struct.pack(">II", 1, 0)), after=red)
    yield Case("PNG, default image outside the animation", hidden, colours=COLOURS, reader=None)
    gif = bytearray(saved(picture("P"), "GIF"))
    gif[6:10] = struct.pack("<HH", WIDE + 32, HIGH + 32)
    at = gif.index(b",", 13 + 3 * 2 ** ((gif[10] & 7) + 1))
    gif[at + 1 : at + 5] = struct.pack("<HH", 32, 32)
    small = np.full((3, 4, 3), 255, np.uint8)
    small[1:, 1:] = COLOURS
    yield Case(
        "GIF, first picture in a corner", bytes(gif), colours=small, reader=None, size=(WIDE + 32, HIGH + 32)
    )


def _refusals() -> Iterator[Case]:
    files = {
        "JPEG": _lossy("JPEG"),
        "PNG": png(fields()),
        "WebP": saved(picture(), "WEBP", lossless=True),
        "TIFF": saved(picture(), "TIFF", compression="tiff_lzw"),
        "BMP": saved(picture(), "BMP"),
        "AVIF": _lossy("AVIF"),
        "HEIC": heic(),
    }
    for name, data in files.items():
        yield Case(f"{name} cut in half", data[: len(data) // 2], code="broken_image")
    noise = np.random.default_rng(1).integers(0, 255, (HIGH, WIDE), dtype=np.uint8)
    gif = saved(Image.fromarray(noise), "GIF")
    yield Case("GIF cut in half", gif[: len(gif) // 2], code="broken_image")
    whole = files["PNG"]
    yield Case("PNG, wrong checksum of pixels", whole[:50] + b"\xff" + whole[51:], code="broken_image")
    yield Case("PNG, unknown critical chunk", png(fields(), before=chunk(b"ABCD", b"")), code="broken_image")
    yield Case(
        "PNG, 16 bits with a key",
        png(fields().astype(np.uint16) * 257, bits=16, before=chunk(b"tRNS", bytes(6))),
        code="unsupported_image",
    )
    frame = whole_jpeg = files["JPEG"]
    at = frame.index(b"\xff\xc0")
    yield Case(
        "JPEG of 12 bits", whole_jpeg[: at + 4] + b"\x0c" + whole_jpeg[at + 5 :], code="unsupported_image"
    )
    yield Case(
        "JPEG, lossless", whole_jpeg[: at + 1] + b"\xc3" + whole_jpeg[at + 2 :], code="unsupported_image"
    )
    yield Case(
        "TIFF of floats",
        tiff(fields().astype(np.float32), 2, extra={339: (3, [3] * 3)}),
        code="unsupported_image",
    )
    yield Case("TIFF of 32 bits", tiff(fields(SHADES).astype(np.uint32), 1), code="unsupported_image")
    twelve = np.zeros((HIGH, WIDE * 12 // 8, 1), np.uint8)
    yield Case(
        "TIFF, grey of 12 bits",
        tiff(twelve, 1, extra={256: (4, [WIDE]), 258: (3, [12])}),
        code="unsupported_image",
    )
    yield Case(
        "TIFF, 16 bits, white is zero",
        tiff(fields(SHADES).astype(np.uint16) * 257, 0),
        code="unsupported_image",
    )
    yield Case("TIFF, thumbnail first", tiff(fields(), 2, extra={254: (4, [1])}), code="unsupported_image")
    yield Case("TIFF, raw", tiff(fields(), 2, extra={50706: (4, [1])}), code="unsupported_image")
    yield Case(
        "TIFF, a million strips",
        tiff(fields(), 2, extra={273: (4, [8] * 1_000_000)}),
        code="image_too_complex",
    )
    yield Case(
        "TIFF, a tile of 2 GB",
        tiff(fields(), 2, extra={322: (4, [30_000]), 323: (4, [30_000]), 324: (4, [8])}),
        code="image_too_complex",
    )
    yield Case(
        "TIFF of a billion pixels",
        tiff(fields(), 2, extra={256: (4, [30_000]), 257: (4, [30_000])}),
        code="image_too_large",
    )
    yield Case("HEIC of a billion pixels", heic(claim=(30_000, 30_000)), code="image_too_large")
    yield Case(
        "HEIC, tiles for a billion pixels", heic(grid=True, claim=(30_000, 30_000)), code="image_too_large"
    )
    yield Case("HEIC, two thousand tiles", heic(grid=True, tiles=2000), code="image_too_complex")
    yield Case("HEIC of another coding", heic(primary=b"vvc1"), code="unsupported_image")
    yield Case("HEIC, smaller than its pixels", heic(claim=(8, 8)), code="broken_image")
    yield Case(
        "BMP of a billion pixels",
        files["BMP"][:18] + struct.pack("<ii", 30_000, 30_000) + files["BMP"][26:],
        code="image_too_large",
    )
    yield Case("BMP, two million moves", bmp_of_runs(8, b"\0\x02\0\0" * 2_000_000), code="image_too_complex")
    yield Case("BMP, runs cut", bmp_of_runs(8, b"\x60\0\0\0" * 9), code="broken_image")
    yield Case(
        "BMP holding a JPEG",
        files["BMP"][:30] + struct.pack("<I", 4) + files["BMP"][34:],
        code="unsupported_image",
    )
    screen = (
        b"GIF89a"
        + struct.pack("<HHBBB", 65535, 65535, 0, 0, 0)
        + b","
        + struct.pack("<HHHHB", 0, 0, 9, 9, 0)
        + b"\2\0"
    )
    yield Case("GIF of a billion pixels", screen, code="image_too_large")
    yield Case(
        "an animated AVIF without a picture",
        _lossy("AVIF").replace(b"pitm", b"free"),
        code="unsupported_image",
    )
    yield Case(
        "a video", box(b"ftyp", b"isom", bytes(4), b"mp42") + box(b"mdat", bytes(99)), code="not_an_image"
    )
    yield Case("an SVG", b"<svg xmlns='http://www.w3.org/2000/svg'/>", code="not_an_image")
    yield Case("a PDF", b"%PDF-1.7\n", code="not_an_image")
    yield Case("a JPEG 2000", bytes.fromhex("0000000c6a5020200d0a870a") + bytes(99), code="not_an_image")
    yield Case("text", b"no picture", code="not_an_image")
    for kind in ("JPEG", "PNG", "WEBP", "TIFF", "BMP", "GIF", "AVIF"):
        yield Case(f"{kind} of 4 x 4", saved(Image.new("RGB", (4, 4)), kind), code="image_too_small")
