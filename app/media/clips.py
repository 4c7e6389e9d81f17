"""Videos in: the frames of a file one after another, upright, in RGB, at the size and rate that are wanted.

Owns reading and geometry. Frames are counted before they are read, because what containers say of their
length is often wrong. Knows neither tensors nor models.
"""

import math
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

SUFFIXES = frozenset({".avi", ".gif", ".m4v", ".mkv", ".mov", ".mp4", ".webm"})
_HD_LINES = 720  # untagged video from this height on is BT.709, below BT.601
_UNSPECIFIED = 2  # of ISO/IEC 23091-2's matrix coefficients
_BT709, _BT601 = 1, 5  # of swscale's tables

Picture = NDArray[np.uint8]


class ClipError(Exception):
    """The file cannot be used as a clip; the message says which and why."""


@dataclass(frozen=True, slots=True)
class Geometry:
    """A picture scaled to `scaled` (width, height), of which the middle `size` is kept."""

    scaled: tuple[int, int]
    size: tuple[int, int]

    def cropped(self, picture: Picture) -> Picture:
        """The middle of a scaled picture `[height, width, 3]`."""
        (width, height), (all_wide, all_high) = self.size, self.scaled
        left, top = (all_wide - width) // 2, (all_high - height) // 2
        return np.ascontiguousarray(picture[top : top + height, left : left + width])


@dataclass(frozen=True, slots=True)
class Clip:
    """One video file: size as it is to be seen, its frame rate, and how far its pictures lie turned."""

    path: Path
    width: int
    height: int
    fps: Fraction
    quarter_turns: int

    def geometry(self, width: int | None, height: int | None, *, multiple: int, default: int) -> Geometry:
        """Where the pictures are cut. `ValueError` where a wanted side is no multiple of `multiple`.

        With neither side given, the clip's own size loses what is beyond a multiple of `default`; with one,
        the other follows; pictures are scaled so that they cover the result.
        """
        for name, side in (("width", width), ("height", height)):
            if side is not None and (side < multiple or side % multiple):
                raise ValueError(f"{name} must be a multiple of {multiple}, got {side}")
        if width is None and height is None:
            size = self.width // default * default, self.height // default * default
            if not all(size):
                raise ClipError(f"{self.path.name} is {self.width}x{self.height}, less than {default} a side")
            return Geometry((self.width, self.height), size)
        wide = width or _followed(height, self.width, self.height, default)
        high = height or _followed(width, self.height, self.width, default)
        scale = max(Fraction(wide, self.width), Fraction(high, self.height))
        return Geometry((math.ceil(self.width * scale), math.ceil(self.height * scale)), (wide, high))

    def count(self, fps: Fraction | None = None, at_most: int | None = None) -> int:
        """Frames that `frames` would give, by decoding them."""
        with _opened(self.path) as (container, stream):
            return sum(1 for _ in islice(self._at_rate(_decoded(container, stream), fps), at_most))

    def frames(self, geometry: Geometry, fps: Fraction | None = None) -> Iterator[Picture]:
        """Pictures `[height, width, 3]` in order; at `fps`, where given, by dropping and repeating."""
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
        """Of each moment the frame that is shown then."""
        if fps is None:
            yield from frames
            return
        given, shown, until = 0, None, Fraction(0)
        start: Fraction | None = None
        for frame in frames:
            if frame.pts is None:
                raise ClipError(f"{self.path.name} does not say when its frames are shown: leave --fps out")
            time = frame.pts * frame.time_base
            start = time if start is None else start
            # Containers round times to their unit, which some have as coarse as a frame.
            rounding = min(frame.time_base, 1 / (4 * self.fps))
            while shown is not None and given / fps < time - start - rounding:
                yield shown
                given += 1
            shown, until = frame, time - start + 1 / self.fps - rounding
        while shown is not None and given / fps < until:
            yield shown
            given += 1


def open_clip(path: Path) -> Clip:
    """What the file says of its video. Raises `ClipError`."""
    with _opened(path) as (container, stream):
        first = next(_decoded(container, stream), None)
        if first is None:
            raise ClipError(f"{path.name} has no pictures")
        fps = stream.average_rate or stream.guessed_rate
        if not fps:
            raise ClipError(f"{path.name} does not say how many frames a second it has")
        turns = round(first.rotation / 90) % 4
        sides = (first.width, first.height) if turns % 2 == 0 else (first.height, first.width)
        return Clip(path, *sides, Fraction(fps), turns)


@contextmanager
def _opened(path: Path) -> Iterator[tuple[Any, Any]]:
    """A file's container and its video stream; what goes wrong while reading is a `ClipError`."""
    try:
        container = av.open(str(path))
    except (av.FFmpegError, OSError) as error:
        raise ClipError(f"{path.name} cannot be read as video: {error}") from error
    with container:
        if not container.streams.video:
            raise ClipError(f"{path.name} has no video")
        stream = container.streams.video[0]
        stream.thread_type = "AUTO"
        try:
            yield container, stream
        except av.FFmpegError as error:
            raise ClipError(f"{path.name} cannot be read to its end: {error}") from error


def _decoded(container: Any, stream: Any) -> Iterator[Any]:
    yield from container.decode(stream)


def _followed(given: int | None, own: int, other: int, multiple: int) -> int:
    """A side in the clip's proportions to the other one, which is `given`."""
    assert given is not None
    return max(multiple, round(own * given / other / multiple) * multiple)
