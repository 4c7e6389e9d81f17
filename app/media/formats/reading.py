"""Reads the frames of a finished mp4 as RGB pictures, in the colours that players show."""

from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any, NamedTuple

import av

from app.media.video_pixels import Picture, PictureReader


class NoSuchFrame(LookupError):
    """The video has no frame of that number."""

    def __init__(self, number: int, frames: int) -> None:
        self.number, self.frames = number, frames
        super().__init__(f"there is no frame {number}: the video has {frames} frames, 0 to {frames - 1}")


class Clip(NamedTuple):
    """An open video: its file, its stream of pictures, and their rate."""

    file: Any
    stream: Any
    fps: Fraction

    @property
    def size(self) -> tuple[int, int]:
        """Width and height in pixels."""
        return int(self.stream.width), int(self.stream.height)

    def pictures(self) -> Iterator[Picture]:
        """Yield all frames in order, as RGB `[height, width, 3]`."""
        reader = PictureReader(self.stream.codec_context.name)
        for frame in self.file.decode(self.stream):
            yield reader.picture(frame, *self.size)


def opened(video: Path) -> Any:
    """Open a file. Its metadata may be any bytes. Raises `OSError` or `ValueError`, as all of PyAV."""
    return av.open(str(video), metadata_errors="replace")


def clip_of(file: Any) -> Clip:
    """The pictures of an open file. Raises `ValueError` if it has none."""
    if not file.streams.video:
        raise ValueError("it has no pictures")
    stream = file.streams.video[0]
    stream.codec_context.thread_count = 1
    return Clip(file, stream, Fraction(stream.average_rate or 1))


def read_frame(video: Path, number: int) -> Picture:
    """Frame `number` of the video, counted from its end if negative, as RGB `[height, width, 3]`.

    Decodes from the key frame before it on. Raises `NoSuchFrame`, `OSError` and `ValueError`.
    """
    with opened(video) as file:
        clip = clip_of(file)
        frames, stream = int(clip.stream.frames), clip.stream
        wanted = number + frames if number < 0 else number
        if not 0 <= wanted < frames:
            raise NoSuchFrame(number, frames)
        start = stream.start_time or 0
        wanted_pts = start + round(wanted / clip.fps / stream.time_base)
        half = round(1 / clip.fps / stream.time_base / 2)
        file.seek(wanted_pts, stream=stream, backward=True)
        reader = PictureReader(stream.codec_context.name)
        for frame in file.decode(stream):
            if frame.pts is not None and frame.pts >= wanted_pts - half:
                return reader.picture(frame, *clip.size)
    raise ValueError(f"it ends before frame {wanted}")
