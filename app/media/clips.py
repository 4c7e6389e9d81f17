"""Reads video files: frames one after another, upright, in RGB, at the requested size and rate.

Owns decoding and geometry. Counts frames by decoding them, because the lengths that containers declare are
often wrong. Must not know tensors or models.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from itertools import islice
from pathlib import Path
from typing import Any

import av
import numpy as np
from numpy.typing import NDArray

from app.media.fit import GRAVITIES, offset, scaled_size

SUFFIXES = frozenset({".avi", ".gif", ".m4v", ".mkv", ".mov", ".mp4", ".webm"})
_HD_LINES = 720  # video without a colour tag is BT.709 from this height on, BT.601 below
_UNSPECIFIED = 2  # matrix coefficients of ISO/IEC 23091-2
_BT709, _BT601 = 1, 5  # swscale's numbers

Picture = NDArray[np.uint8]


class ClipError(Exception):
    """The file cannot be used as a clip; the message says which and why."""


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
    """One video file: its upright size in pixels, its frame rate, and the rotation stored in it."""

    path: Path
    width: int
    height: int
    fps: Fraction
    quarter_turns: int

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
                raise ClipError(f"{self.path.name} is {self.width}x{self.height}, less than {default} a side")
            own = (self.width, self.height)
            return Geometry(own if fit == "cover" else scaled_size(own, size, fit), size, gravity)
        wide = width or _followed(height, self.width, self.height, default)
        high = height or _followed(width, self.height, self.width, default)
        return Geometry(scaled_size((self.width, self.height), (wide, high), fit), (wide, high), gravity)

    def count(self, fps: Fraction | None = None, at_most: int | None = None) -> int:
        """Number of frames that `frames` yields, at most `at_most`; decodes the file."""
        with _opened(self.path) as (container, stream):
            return sum(1 for _ in islice(self._at_rate(_decoded(container, stream), fps), at_most))

    def frames(self, geometry: Geometry, fps: Fraction | None = None) -> Iterator[Picture]:
        """Yield pictures `[height, width, 3]` in order; with `fps`, drops and repeats frames to that rate."""
        with _opened(self.path) as (container, stream):
            for frame in self._at_rate(_decoded(container, stream), fps):
                yield geometry.cropped(self._upright(frame, geometry.scaled))

    def _upright(self, frame: Any, size: tuple[int, int]) -> Picture:
        width, height = size if self.quarter_turns % 2 == 0 else size[::-1]
        untagged = _BT709 if frame.height >= _HD_LINES else _BT601
        colours = untagged if frame.colorspace == _UNSPECIFIED else frame.colorspace
        scaled = frame.reformat(
            width, height, "rgb24", src_colorspace=colours, interpolation="LANCZOS"
        ).to_ndarray()
        return np.rot90(scaled, self.quarter_turns)

    def _at_rate(self, frames: Iterator[Any], fps: Fraction | None) -> Iterator[Any]:
        """For each moment at `fps`, the frame shown then. Without `fps`, all frames."""
        if fps is None:
            yield from frames
            return
        given, shown, until = 0, None, Fraction(0)
        start: Fraction | None = None
        for frame in frames:
            if frame.pts is None:
                raise ClipError(f"{self.path.name} has frames without timestamps: leave --fps out")
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
    """Read the size, rate and rotation of the file's first video stream. Raises `ClipError`."""
    with _opened(path) as (container, stream):
        first = next(_decoded(container, stream), None)
        if first is None:
            raise ClipError(f"{path.name} has no frames")
        fps = stream.average_rate or stream.guessed_rate
        if not fps:
            raise ClipError(f"{path.name} declares no frame rate")
        turns = round(first.rotation / 90) % 4
        sides = (first.width, first.height) if turns % 2 == 0 else (first.height, first.width)
        return Clip(path, *sides, Fraction(fps), turns)


@contextmanager
def _opened(path: Path) -> Iterator[tuple[Any, Any]]:
    """A file's container and its first video stream. Raises errors while reading as `ClipError`."""
    try:
        container = av.open(str(path))
    except (av.FFmpegError, OSError) as error:
        raise ClipError(f"{path.name} cannot be read as video: {error}") from error
    with container:
        if not container.streams.video:
            raise ClipError(f"{path.name} has no video stream")
        stream = container.streams.video[0]
        stream.thread_type = "AUTO"
        try:
            yield container, stream
        except av.FFmpegError as error:
            raise ClipError(f"{path.name} cannot be read to its end: {error}") from error


def _decoded(container: Any, stream: Any) -> Iterator[Any]:
    yield from container.decode(stream)


def _followed(given: int | None, own: int, other: int, multiple: int) -> int:
    """The side that keeps the clip's aspect ratio when the other side is `given`."""
    assert given is not None
    return max(multiple, round(own * given / other / multiple) * multiple)
