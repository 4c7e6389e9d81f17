"""Clips of every kind that people have, made by code: codec, pixels, colour, shape, rate and damage.

Each case says what it is; `reference_clip.py` reads it with ffmpeg's command line, told the truth by the case
and not by the file's tags, so that reading the tags is tested, too. Longer than other files: it is one table
of cases and what makes them.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from numpy.typing import NDArray

FRAMES = 3
LIMITED, FULL = 1, 2
WEIGHTS = {1: (0.2126, 0.0722), 4: (0.30, 0.11), 5: (0.299, 0.114), 6: (0.299, 0.114)}
WEIGHTS |= {7: (0.212, 0.087), 9: (0.2627, 0.0593)}
UPRIGHT = (1, 0, 0, 1)
LOSSLESS: Mapping[str, dict[str, str]] = {
    "libx264": {"qp": "0", "preset": "ultrafast"},
    "libx264rgb": {"qp": "0", "preset": "ultrafast"},
    "libx265": {"preset": "ultrafast", "x265-params": "lossless=1:bframes=0:log-level=none"},
    "libvpx-vp9": {"lossless": "1", "deadline": "realtime", "cpu-used": "8"},
    "libsvtav1": {"crf": "5", "preset": "12"},
    "mpeg2video": {"b": "20000000", "qmin": "1"},
    "mpeg4": {"b": "20000000", "qmin": "1"},
    "mjpeg": {"qmin": "1", "qmax": "1"},
    "dnxhd": {"profile": "dnxhr_444"},
    "ffv1": {"level": "3", "slicecrc": "1"},
}


@dataclass(frozen=True)
class Case:
    """One clip. `tags` is (primaries, transfer, matrix, range) as written; `truth` what they mean.

    `sar` is in the stream, `container_sar` in the container. `code` is that of the refusal; None: it is read.
    """

    name: str
    codec: str = "ffv1"
    suffix: str = ".mkv"
    pixels: str = "yuv420p"
    size: tuple[int, int] = (96, 64)
    tags: tuple[int, int, int, int] = (1, 1, 1, LIMITED)
    truth: tuple[int, int, int, int] = (0, 0, 0, 0)
    rate: Fraction = Fraction(24)
    sar: Fraction | None = None
    container_sar: Fraction | None = None
    turn: tuple[int, int, int, int] = UPRIGHT
    shown: tuple[int, int] | None = None
    interlaced: bool = False
    options: Mapping[str, str] = field(default_factory=dict)
    frames: int = FRAMES
    peak_nits: float = 1000.0
    damage: Callable[[bytes], bytes] | None = None
    code: str | None = None

    @property
    def is_rgb(self) -> bool:
        return self.pixels.startswith(("gbr", "rgb", "bgr", "argb", "pal"))

    @property
    def has_alpha(self) -> bool:
        return self.pixels in ("rgba", "bgra", "argb", "gbrap") or self.pixels.startswith("yuva")

    @property
    def meant(self) -> tuple[int, int, int, int]:
        """The tags with `truth` in place of those that are not written."""
        return tuple(true or tag for tag, true in zip(self.tags, self.truth, strict=True))  # type: ignore[return-value]

    @property
    def size_shown(self) -> tuple[int, int]:
        """Width and height of the upright picture with square pixels."""
        if self.shown is not None:
            return self.shown
        return self.size if self.turn[0] else self.size[::-1]


def picture(number: int, width: int, height: int, saturation: float = 0.6) -> NDArray[np.float64]:
    """RGB `[height, width, 3]` in 0..1: smooth, moving with the frame's number."""
    y, x = np.mgrid[:height, :width]
    waves = [
        0.5 + 0.28 * np.sin((x * a + y * b) / 11 + number / 4 + p)
        for a, b, p in ((1, 0, 0), (0, 1, 1), (1, 1, 2))
    ]
    grey = sum(waves) / 3
    return np.stack([saturation * wave + (1 - saturation) * grey for wave in waves], -1)


def write(case: Case, path: Path, made: Callable[[int], Any] | None = None) -> Path:
    """Make the clip, by default of `coded` frames."""
    options = {**LOSSLESS.get(case.codec, {}), **case.options}
    container = {"movflags": options.pop("movflags")} if "movflags" in options else {}
    with av.open(str(path), "w", options=container) as file:
        stream = file.add_stream(case.codec, rate=case.rate, options=options)
        stream.width, stream.height = case.size
        stream.pix_fmt = case.pixels
        context = stream.codec_context
        context.time_base = 1 / case.rate
        context.color_primaries, context.color_trc, context.colorspace, context.color_range = case.tags
        if case.sar is not None:
            context.sample_aspect_ratio = case.sar
        if case.interlaced:
            context.flags |= 1 << 18 | 1 << 29
        if case.turn != UPRIGHT:
            a, b, c, d = case.turn
            stream.set_display_matrix([a << 16, b << 16, 0, c << 16, d << 16, 0, 0, 0, 1 << 30])
        for number in range(case.frames):
            frame = coded(case, number) if made is None else made(number)
            frame.pts, frame.time_base = number, 1 / case.rate
            file.mux(stream.encode(frame))
        file.mux(stream.encode(None))
    content = path.read_bytes()
    if case.container_sar is not None:
        content = _with_container_sar(content, case.container_sar)
    if case.damage is not None:
        content = case.damage(content)
    path.write_bytes(content)
    return path


def coded(case: Case, number: int) -> Any:
    """A frame in the case's pixel format."""
    width, height = case.size
    # At the edge of BT.709's gamut, a step of an HDR sample is several of 255.
    values = picture(number, width, height, 0.2 if case.meant[1] in (16, 18) else 0.6)
    if case.interlaced:  # the lower field is half a frame later
        values[1::2] = picture(number + 2, width, height)[1::2]
    form = case.pixels
    if form.startswith("bayer"):
        return av.VideoFrame(width, height, form)
    if form.startswith(("rgb", "bgr", "argb", "pal")):
        colours = np.rint(values * 255).astype(np.uint8)
        if form in ("rgba", "bgra", "argb", "pal8"):
            opaque = np.dstack([colours, _alpha(width, height, 255, binary=form == "pal8")])
            frame = av.VideoFrame.from_ndarray(opaque.astype(np.uint8), format="rgba")
        else:
            frame = av.VideoFrame.from_ndarray(colours, format="rgb24")
        return frame if frame.format.name == form else frame.reformat(format=form)
    packed = {"uyvy422": "yuv422p", "yuyv422": "yuv422p", "nv12": "yuv420p", "p010le": "yuv420p10le"}
    frame = _planar(case, values, packed.get(form, form))
    frame.color_primaries, frame.color_trc, frame.colorspace, frame.color_range = case.tags
    return frame.reformat(format=form) if form in packed else frame


def _planar(case: Case, values: NDArray[np.float64], form: str) -> Any:
    frame = av.VideoFrame(*case.size, form)
    bits = frame.format.components[0].bits
    most, step = (1 << bits) - 1, 1 << (bits - 8)
    if case.is_rgb:
        planes = [values[..., channel] * most for channel in (1, 2, 0)]
    else:
        red, blue = WEIGHTS.get(case.meant[2], WEIGHTS[1])
        luma = values @ np.array([red, 1 - red - blue, blue])
        chroma = [(values[..., 2] - luma) / (2 - 2 * blue), (values[..., 0] - luma) / (2 - 2 * red)]
        full = case.meant[3] == FULL
        planes = [luma * most if full else luma * 219 * step + 16 * step]
        planes += [part * (most if full else 224 * step) + 128 * step for part in chroma]
    if any(component.is_alpha for component in frame.format.components):
        planes = [*planes[:3], _alpha(*case.size, most)]
    for plane, whole in zip(frame.planes, planes, strict=False):
        down, across = case.size[1] // plane.height, case.size[0] // plane.width
        part = whole.reshape(plane.height, down, plane.width, across).mean((1, 3))
        samples = np.rint(part).clip(0, most).astype(np.uint8 if bits == 8 else np.uint16)
        lines = np.zeros((plane.height, plane.line_size // samples.itemsize), samples.dtype)
        lines[:, : plane.width] = samples
        plane.update(lines.tobytes())
    return frame


def _alpha(width: int, height: int, most: int, *, binary: bool = False) -> NDArray[np.float64]:
    """Opaque at the left, transparent at the right."""
    ramp = np.tile(np.linspace(1, 0, width), (height, 1))
    return np.rint(ramp if binary else ramp * most) * (most if binary else 1)


def _with_container_sar(content: bytes, sar: Fraction) -> bytes:
    at = content.index(b"pasp") + 4
    return content[:at] + struct.pack(">II", sar.numerator, sar.denominator) + content[at + 8 :]


def _cut(share: float) -> Callable[[bytes], bytes]:
    return lambda content: content[: int(len(content) * share)]


def _overwritten(start: float, length: int, value: int = 0) -> Callable[[bytes], bytes]:
    def change(content: bytes) -> bytes:
        at = int(len(content) * start)
        return content[:at] + bytes([value]) * length + content[at + length :]

    return change


def _without(start: float, packets: int) -> Callable[[bytes], bytes]:
    """Without packets of a transport stream, as after bad reception."""

    def change(content: bytes) -> bytes:
        at = int(len(content) * start) // 188 * 188
        return content[:at] + content[at + 188 * packets :]

    return change


def cases() -> Iterator[Case]:
    """The corpus."""
    yield from _pixels()
    yield from _colours()
    yield from _shapes()
    yield from _rates()
    yield from _damage()


def _pixels() -> Iterator[Case]:
    mp4, mov, webm, avi = ".mp4", ".mov", ".webm", ".avi"
    for codec, suffix, forms in (
        ("ffv1", ".mkv", "yuv420p yuv422p yuv444p yuv420p10le yuv422p10le yuv444p12le yuv420p16le"),
        ("libx264", mp4, "yuv420p yuv422p yuv444p yuv420p10le yuv422p10le nv12"),
        ("libx265", mp4, "yuv420p yuv420p10le yuv422p12le yuv444p10le"),
        ("libvpx-vp9", webm, "yuv420p yuv422p yuv444p"),
        ("libsvtav1", mp4, "yuv420p yuv420p10le"),
        ("prores_ks", mov, "yuv422p10le yuv444p10le"),
        ("huffyuv", avi, "yuv422p"),
        ("utvideo", avi, "yuv420p"),
        ("mpeg4", avi, "yuv420p"),
        ("mpeg2video", mov, "yuv422p"),
        ("rawvideo", mov, "uyvy422"),
    ):
        for form in forms.split():
            size = (128, 64) if codec == "libsvtav1" else (96, 64)
            # AVI and MPEG-4 Part 2 have no tags for colour.
            untagged = {"tags": (2, 2, 2, 0), "truth": (1, 1, 6, LIMITED)} if suffix == avi else {}
            yield Case(f"{codec} {form}", codec, suffix, form, size=size, **untagged)
    for codec, suffix, forms in (
        ("ffv1", ".mkv", "bgr0 gbrp10le gbrp12le gbrp16le"),
        ("libx264rgb", mp4, "rgb24"),
        ("libx265", mp4, "gbrp gbrp10le"),
        ("libvpx-vp9", webm, "gbrp"),
        ("png", mov, "rgb24"),
        ("qtrle", mov, "rgb24"),
        ("utvideo", avi, "gbrp"),
        ("magicyuv", avi, "gbrp"),
        ("rawvideo", avi, "bgr24"),
    ):
        for form in forms.split():
            yield Case(f"{codec} {form}", codec, suffix, form, tags=(1, 13, 0, FULL))
    for codec, suffix, form in (
        ("ffv1", ".mkv", "yuva420p"),
        ("ffv1", ".mkv", "yuva444p10le"),
        ("ffv1", ".mkv", "bgra"),
        ("prores_ks", mov, "yuva444p10le"),
        ("png", mov, "rgba"),
        ("qtrle", mov, "argb"),
        ("utvideo", avi, "gbrap"),
    ):
        options = {"profile": "4444"} if codec == "prores_ks" else {}
        yield Case(f"alpha {codec} {form}", codec, suffix, form, options=options)
    yield Case("grey ffv1", "ffv1", pixels="gray", tags=(1, 1, 2, FULL))
    yield Case("grey ffv1 untagged", "ffv1", pixels="gray", tags=(2, 2, 2, 0), truth=(1, 1, 1, FULL))
    yield Case("grey ffv1 limited", "ffv1", pixels="gray10le", tags=(1, 1, 2, LIMITED))
    yield Case("grey x264", "libx264", mp4, "gray", tags=(1, 1, 1, LIMITED))
    yield Case("grey x264 untagged", "libx264", mp4, "gray", tags=(2, 2, 2, 0), truth=(1, 1, 1, LIMITED))
    yield Case("grey x265", "libx265", mp4, "gray10le", tags=(1, 1, 1, LIMITED))
    yield Case("jpeg", "mjpeg", avi, "yuvj420p", tags=(2, 2, 5, FULL), truth=(1, 1, 5, FULL))
    yield Case("jpeg 4:4:4", "mjpeg", mov, "yuvj444p", tags=(2, 2, 5, FULL), truth=(1, 1, 5, FULL))
    yield Case("bayer", "rawvideo", ".nut", "bayer_rggb8", code="clip_pixels_unsupported")


def _colours() -> Iterator[Case]:
    for matrix in (1, 4, 5, 6, 7, 9):
        for full in (LIMITED, FULL):
            name = f"matrix {matrix} {'full' if full == FULL else 'limited'}"
            yield Case(name, "libx264", ".mp4", "yuv444p", tags=(1, 1, matrix, full))
    for form in ("yuv420p", "yuv420p10le", "yuv444p12le"):
        yield Case(f"full range {form}", "ffv1", pixels=form, tags=(1, 1, 1, FULL))
        yield Case(f"full range x265 {form}", "libx265", ".mp4", form, tags=(1, 1, 1, FULL))
    for size, matrix in (((96, 64), 6), ((720, 576), 6), ((96, 640), 1), ((1280, 64), 1)):
        name = f"untagged {size[0]}x{size[1]}"
        yield Case(name, "libx264", ".mp4", size=size, tags=(2, 2, 2, 0), truth=(1, 1, matrix, LIMITED))
    for primaries in (4, 5, 6, 8, 9, 11, 12):
        matrix = 9 if primaries == 9 else 1
        tags = (primaries, 1, matrix, LIMITED)
        yield Case(f"primaries {primaries}", "libx264", ".mp4", "yuv420p10le", tags=tags)
    yield Case("primaries 22", pixels="yuv420p10le", tags=(22, 1, 1, LIMITED))
    yield Case("Display P3, sRGB", "libx265", ".mp4", "yuv420p10le", tags=(12, 13, 1, FULL))
    yield Case("Display P3, RGB", "libx264rgb", ".mp4", "rgb24", tags=(12, 13, 0, FULL))
    for transfer in (4, 5, 6, 7, 8, 11, 13, 14, 15):
        yield Case(f"transfer {transfer}", "libx264", ".mp4", tags=(1, transfer, 1, LIMITED))
    for codec, suffix, form in (
        ("libx265", ".mp4", "yuv420p10le"),
        ("libx264", ".mkv", "yuv422p10le"),
        ("ffv1", ".mkv", "gbrp12le"),
    ):
        for transfer, name in ((16, "PQ"), (18, "HLG")):
            matrix, full = (0, FULL) if form.startswith("gbr") else (9, LIMITED)
            yield Case(f"{name} {codec}", codec, suffix, form, tags=(9, transfer, matrix, full))
    yield Case("HLG ProRes", "prores_ks", ".mov", "yuv422p10le", tags=(9, 18, 9, LIMITED))
    yield Case("PQ 8 bit Display P3", "libx265", ".mp4", "yuv420p", tags=(12, 16, 1, LIMITED))
    tags, truth = (2, 16, 2, LIMITED), (9, 16, 9, LIMITED)
    yield Case("PQ untagged else", "libx265", ".mp4", "yuv420p10le", tags=tags, truth=truth)
    light = "lossless=1:bframes=0:log-level=none:hdr10=1:max-cll=4000,400"
    screen = "lossless=1:bframes=0:log-level=none:master-display="
    screen += "G(13250,34500)B(7500,3000)R(34000,16000)WP(15635,16450)L(6000000,50)"
    hdr = Case("PQ", "libx265", ".mp4", "yuv420p10le", tags=(9, 16, 9, LIMITED))
    yield replace(hdr, name="PQ MaxCLL 4000", options={"x265-params": light}, peak_nits=4000)
    yield replace(hdr, name="PQ mastered at 600", options={"x265-params": screen}, peak_nits=600)
    refused = Case("refused", "libx264", ".mp4", code="clip_colour_unsupported")
    for matrix in (8, 10, 14):
        yield replace(refused, name=f"matrix {matrix}", tags=(1, 1, matrix, LIMITED))
    for transfer in (9, 10, 17):
        yield replace(refused, name=f"transfer {transfer}", tags=(1, transfer, 1, LIMITED))
    yield replace(refused, name="primaries 10", tags=(10, 1, 1, LIMITED))


def _shapes() -> Iterator[Case]:
    for sar, shown in (("16/9", (171, 64)), ("8/9", (85, 64)), ("16/15", (102, 64)), ("1/2", (48, 64))):
        case = Case(f"sar {sar}", "libx264", ".mp4", sar=Fraction(sar), shown=shown)
        yield case
        yield replace(case, name=f"sar {sar} of the stream alone", suffix=".mkv")
    both = Case("sar container first", "libx264", ".mp4", sar=Fraction(4, 3), shown=(192, 64))
    yield replace(both, container_sar=Fraction(2))
    hostile = Case("sar hostile", "libx264", ".mp4", sar=Fraction(4, 3), code="clip_shape_unsupported")
    yield replace(hostile, container_sar=Fraction(30_000, 1))
    turns = {"clockwise": (0, 1, -1, 0), "upside down": (-1, 0, 0, -1), "anticlockwise": (0, -1, 1, 0)}
    turns |= {"mirrored": (-1, 0, 0, 1), "flipped": (1, 0, 0, -1)}
    turns |= {"transposed": (0, 1, 1, 0), "transverse": (0, -1, -1, 0)}
    for name, turn in turns.items():
        yield Case(name, "libx264", ".mp4", turn=turn)
    yield Case("turned, sar", "libx264", ".mp4", turn=(0, 1, -1, 0), sar=Fraction(16, 9), shown=(64, 171))
    yield Case("turned mov", "png", ".mov", "rgb24", tags=(1, 13, 0, FULL), turn=(0, 1, -1, 0))
    yield Case("askew", "libx264", ".mp4", turn=(1, 1, -1, 1), code="clip_shape_unsupported")
    for codec, suffix, form in (
        ("mpeg2video", ".ts", "yuv420p"),
        ("libx264", ".mp4", "yuv420p"),
        ("prores_ks", ".mov", "yuv422p10le"),
    ):
        yield Case(f"interlaced {codec}", codec, suffix, form, interlaced=True, frames=5)


def _rates() -> Iterator[Case]:
    for rate in ("24000/1001", "30000/1001", "60000/1001", "25/2", "15", "50"):
        for codec, suffix in (("libx264", ".mp4"), ("libx264", ".mkv"), ("ffv1", ".avi")):
            truth = (1, 1, 6, LIMITED)
            yield Case(f"{rate} {suffix}", codec, suffix, tags=(2, 2, 2, 0), truth=truth, rate=Fraction(rate))


def _damage() -> Iterator[Case]:
    whole = Case("damage", "libx264", ".mp4", size=(160, 128), frames=12, code="clip_damaged")
    early = replace(whole, options={"movflags": "+faststart"})
    for share in (0.5, 0.9, 0.99):
        yield replace(early, name=f"mp4 cut at {share}", damage=_cut(share))
        yield replace(whole, name=f"mkv cut at {share}", suffix=".mkv", codec="ffv1", damage=_cut(share))
        yield replace(whole, name=f"avi cut at {share}", suffix=".avi", codec="ffv1", damage=_cut(share))
    yield replace(
        whole, name="gif cut", suffix=".gif", codec="gif", pixels="rgb8", tags=(2, 2, 2, 0), damage=_cut(0.6)
    )
    yield replace(early, name="mp4 hole", damage=_overwritten(0.5, 3000))
    for share in (0.3, 0.5, 0.7):
        stream = replace(whole, suffix=".ts", options={"g": "4"})
        yield replace(stream, name=f"ts hole at {share}", damage=_overwritten(share, 3000))
    yield replace(whole, name="webm cut", suffix=".webm", codec="libvpx-vp9", damage=_cut(0.6))
    lost = replace(whole, suffix=".ts", size=(160, 128), frames=24)
    for codec, start, packets in (("libx264", 0.5, 3), ("mpeg2video", 0.5, 30), ("libx265", 0.7, 1)):
        stream = replace(lost, codec=codec, options={} if codec == "libx265" else {"g": "8"})
        yield replace(stream, name=f"ts gap {codec}", damage=_without(start, packets))
    yield replace(whole, name="mkv hole", suffix=".mkv", damage=_overwritten(0.5, 3000))
    yield replace(early, name="mp4 rubbish", damage=_overwritten(0.5, 3000, 0x55))
    unread = replace(whole, code="clip_unreadable")
    yield replace(
        unread, name="mp4 without its index", damage=lambda content: content.replace(b"moov", b"lost")
    )
    yield replace(unread, name="text", damage=lambda _: b"la la la\n" * 99)
    yield replace(unread, name="empty", damage=lambda _: b"")
