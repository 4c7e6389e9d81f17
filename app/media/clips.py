"""Reads video files: frames one after another, upright, with square pixels, at a size and a rate.

Owns decoding and geometry; `app.media.video_pixels` owns colour. Counts frames by decoding them, because the
lengths that containers declare are often wrong. Must not know tensors or models.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from itertools import islice
from pathlib import Path
from typing import Any, Final

import av
import numpy as np
from av.sidedata.sidedata import Type as SideData
from av.stream import Disposition

from app.frame_rate import nearest_standard
from app.media.clip_structure import damage
from app.media.colorimetry.video_colour import UnknownColour
from app.media.fit import GRAVITIES, offset, scaled_size, side_like
from app.media.frame_filters import progressive
from app.media.video_pixels import Picture, PictureReader, UnknownPixels

SUFFIXES = frozenset({".avi", ".gif", ".m4v", ".mkv", ".mov", ".mp4", ".webm"})
MAX_SIDE: Final = 16_384
# The decoder must not conceal damage: concealed frames look like real ones.
_DECODER: Final = {"err_detect": "crccheck+bitstream+buffer+explode"}
# Dolby Vision without a compatible base layer: its colours need the metadata that FFmpeg does not apply.
_DOLBY_VISION_ONLY: Final = frozenset({"dvh1", "dvhe", "dva1", "dvav", "dav1"})
_ASKEW: Final = 57  # matrices turned by less than a degree are taken as upright, as FFmpeg takes them
_UNSPECIFIED: Final = frozenset({0, 2})  # matrix coefficients of ITU-T H.273


class ClipError(Exception):
    """The file cannot be used as a clip; the message says which and why. `code` is stable for scripts."""

    def __init__(self, message: str, code: str = "clip_unsuitable") -> None:
        self.code = code
        super().__init__(message)


@dataclass(frozen=True, slots=True)
class Orientation:
    """How stored pictures are turned to be upright: transposed first, then mirrored."""

    transposed: bool = False
    mirrored: bool = False
    upside_down: bool = False

    def upright(self, picture: Picture) -> Picture:
        """The picture `[height, width, 3]`, upright."""
        turned = picture.transpose(1, 0, 2) if self.transposed else picture
        return turned[:: -1 if self.upside_down else 1, :: -1 if self.mirrored else 1]

    def sides(self, width: int, height: int) -> tuple[int, int]:
        """The sides of a picture before or after it is turned."""
        return (height, width) if self.transposed else (width, height)


@dataclass(frozen=True, slots=True)
class Geometry:
    """Scale a picture to `scaled`, then cut it or set it between black bars so that it has `size`.

    Both are (width, height) in pixels; `gravity` is the side that is kept.
    """

    scaled: tuple[int, int]
    size: tuple[int, int]
    gravity: str = "center"

    def cropped(self, picture: Picture) -> Picture:
        """The scaled picture `[height, width, 3]` as `size`."""
        for axis, (side, share) in enumerate(
            zip(self.size[::-1], GRAVITIES[self.gravity][::-1], strict=True)
        ):
            spare = picture.shape[axis] - side
            before = offset(spare, share)
            if spare > 0:
                picture = picture.take(range(before, before + side), axis)
            elif spare < 0:
                around = [(0, 0), (0, 0), (0, 0)]
                around[axis] = (before, -spare - before)
                picture = np.pad(picture, around)
        return np.ascontiguousarray(picture)


@dataclass(frozen=True, slots=True)
class Clip:
    """One video file: its upright size in square pixels, its frame rate, and how it is stored."""

    path: Path
    width: int
    height: int
    fps: Fraction
    orientation: Orientation
    coded_sides: tuple[int, int]

    def geometry(
        self,
        width: int | None,
        height: int | None,
        *,
        multiple: int,
        default: int,
        fit: str = "cover",
        gravity: str = "center",
    ) -> Geometry:
        """How pictures are scaled and cropped to `width` x `height`.

        `fit` and `gravity` are those of `app.media.fit`. Without either side, the clip's own size is brought
        down to multiples of `default`; `cover` does it without scaling. With one side, the other keeps the
        aspect ratio. Raises `ValueError` if a given side is not a multiple of `multiple`, and `ClipError` if
        the clip is smaller than `default`.
        """
        for name, side in (("width", width), ("height", height)):
            if side is not None and (side < multiple or side % multiple):
                raise ValueError(f"{name} must be a multiple of {multiple}, got {side}")
        if width is None and height is None:
            size = self.width // default * default, self.height // default * default
            if not all(size):
                message = f"{self.path.name} is {self.width}x{self.height}, less than {default} a side"
                raise ClipError(message, "clip_too_small")
            own = (self.width, self.height)
            return Geometry(own if fit == "cover" else scaled_size(own, size, fit), size, gravity)
        wide = width or side_like(height or 0, self.width, self.height, multiple=default, least=default)
        high = height or side_like(width or 0, self.height, self.width, multiple=default, least=default)
        return Geometry(scaled_size((self.width, self.height), (wide, high), fit), (wide, high), gravity)

    def count(self, fps: Fraction | None = None, at_most: int | None = None) -> int:
        """Number of frames that `frames` yields, at most `at_most`; decodes the file."""
        with _opened(self.path) as (container, stream):
            return sum(1 for _ in islice(self._at_rate(self._decoded(container, stream), fps), at_most))

    def frames(self, geometry: Geometry, fps: Fraction | None = None) -> Iterator[Picture]:
        """Yield pictures `[height, width, 3]` in order; with `fps`, drops and repeats frames to that rate.

        The colours are BT.709 or sRGB. Interlaced frames are deinterlaced, one frame from both fields.
        """
        width, height = self.orientation.sides(*geometry.scaled)
        with _opened(self.path) as (container, stream):
            reader = PictureReader(stream.codec_context.name)
            for frame in self._at_rate(progressive(self._decoded(container, stream)), fps):
                with _colours_named(self.path):
                    picture = reader.picture(frame, width, height)
                yield geometry.cropped(self.orientation.upright(picture))

    def _decoded(self, container: Any, stream: Any) -> Iterator[Any]:
        """Every frame of the stream. Raises `ClipError` if one is damaged or has another shape."""
        for frame in _decoded(self.path, container, stream):
            if frame.is_corrupt:
                raise ClipError(f"{self.path.name} is damaged: a frame cannot be decoded", "clip_damaged")
            sides = frame.width, frame.height
            if sides != self.coded_sides and not _same_shape(sides, self.coded_sides):
                before, after = ("{}x{}".format(*pair) for pair in (self.coded_sides, sides))
                message = f"{self.path.name} changes its shape from {before} to {after}: cut it there"
                raise ClipError(message, "clip_shape_unsupported")
            yield frame

    def _at_rate(self, frames: Iterator[Any], fps: Fraction | None) -> Iterator[Any]:
        """For each moment at `fps`, the frame shown then. Without `fps`, all frames."""
        if fps is None:
            yield from frames
            return
        given, shown, until = 0, None, Fraction(0)
        start: Fraction | None = None
        for frame in frames:
            if frame.pts is None:
                message = f"{self.path.name} has frames without timestamps: leave --fps out"
                raise ClipError(message, "clip_rate_unknown")
            time = frame.pts * frame.time_base
            start = time if start is None else start
            # Containers round timestamps to their time base, which can be as coarse as a frame.
            rounding = min(frame.time_base, 1 / (4 * self.fps))
            while shown is not None and given / fps < time - start - rounding:
                yield shown
                given += 1
            shown, until = frame, time - start + 1 / self.fps - rounding
        while shown is not None and given / fps < until:
            yield shown
            given += 1


def open_clip(path: Path) -> Clip:
    """Read the size, rate and orientation of the file's main video stream.

    The shape of pixels is the container's, else the stream's, as in FFmpeg and players. It changes the width.
    Raises `ClipError`, also for files that were cut off and for colours that have no conversion.
    """
    if found := _damage(path):
        raise ClipError(f"{path.name} cannot be read to its end: {found}", "clip_damaged")
    with _opened(path) as (container, stream):
        first = next(_decoded(path, container, stream), None)
        if first is None:
            raise ClipError(f"{path.name} has no frames", "clip_unreadable")
        fps = stream.average_rate or stream.guessed_rate
        if not fps:
            raise ClipError(f"{path.name} declares no frame rate", "clip_rate_unknown")
        if _four_letters(stream) in _DOLBY_VISION_ONLY and first.colorspace in _UNSPECIFIED:
            raise ClipError(f"{path.name}: Dolby Vision without a base layer", "clip_colour_unsupported")
        orientation = _orientation(path, first)
        shape = stream.sample_aspect_ratio or Fraction(1)
        width = math.floor(first.width * shape + Fraction(1, 2))
        if not 1 <= width <= MAX_SIDE or first.height > MAX_SIDE:
            message = f"{path.name} shows {width}x{first.height} pixels; at most {MAX_SIDE} a side are read"
            raise ClipError(message, "clip_shape_unsupported")
        with _colours_named(path):
            PictureReader(stream.codec_context.name).picture(first, 8, 8)
        sides = orientation.sides(width, first.height)
        return Clip(path, *sides, nearest_standard(Fraction(fps)), orientation, (first.width, first.height))


def _damage(path: Path) -> str | None:
    try:
        return damage(path)
    except OSError as error:
        raise ClipError(f"{path.name} cannot be read as video: {error}", "clip_unreadable") from error


@contextmanager
def _colours_named(path: Path) -> Iterator[None]:
    """Raise what has no conversion as `ClipError`."""
    try:
        yield
    except UnknownColour as error:
        message = f"{path.name} cannot be converted: {error}"
        raise ClipError(message, "clip_colour_unsupported") from None
    except UnknownPixels as error:
        message = f"{path.name} cannot be converted: {error}"
        raise ClipError(message, "clip_pixels_unsupported") from None


@contextmanager
def _opened(path: Path) -> Iterator[tuple[Any, Any]]:
    """A file's container and its main video stream. Raises errors while reading as `ClipError`."""
    try:
        container = av.open(str(path))
    except (av.FFmpegError, OSError) as error:
        raise ClipError(f"{path.name} cannot be read as video: {error}", "clip_unreadable") from error
    with container:
        stream = container.streams.best("video")
        if stream is None or stream.disposition & Disposition.attached_pic:  # a song's cover
            raise ClipError(f"{path.name} has no video stream", "clip_unreadable")
        stream.thread_type = "AUTO"
        stream.codec_context.options = _DECODER
        try:
            yield container, stream
        except av.FFmpegError as error:
            raise ClipError(f"{path.name} cannot be read to its end: {error}", "clip_damaged") from error


def _decoded(path: Path, container: Any, stream: Any) -> Iterator[Any]:
    for packet in container.demux(stream):
        if packet.is_corrupt:  # a gap that the decoder may not notice, as in a recorded broadcast
            raise ClipError(f"{path.name} is damaged: a packet is incomplete", "clip_damaged")
        yield from packet.decode()


def _four_letters(stream: Any) -> str:
    """The container's name of the codec; empty if it is no text."""
    try:
        return str(stream.codec_context.codec_tag)
    except UnicodeDecodeError:
        return ""


def _orientation(path: Path, frame: Any) -> Orientation:
    """How the frame's display matrix turns it: x' = a x + c y, y' = b x + d y."""
    data = frame.side_data.get(SideData.DISPLAYMATRIX)
    if data is None:
        return Orientation()
    a, b, _, c, d, *_ = np.frombuffer(bytes(data)[:36], np.int32).tolist()
    if a * d == b * c:  # it shows nothing: damaged, and players ignore it
        return Orientation()
    if _ASKEW * max(abs(b), abs(c)) <= min(abs(a), abs(d)):
        return Orientation(False, a < 0, d < 0)
    if _ASKEW * max(abs(a), abs(d)) <= min(abs(b), abs(c)):
        return Orientation(True, c < 0, b < 0)
    message = f"{path.name} is turned by {frame.rotation} degrees; only quarter turns are read"
    raise ClipError(message, "clip_shape_unsupported")


def _same_shape(sides: tuple[int, int], others: tuple[int, int]) -> bool:
    """Whether the aspect ratios differ by less than a pixel of the smaller picture."""
    (width, height), (other_width, other_height) = sorted((sides, others))
    return abs(width - height * other_width / other_height) <= 2
