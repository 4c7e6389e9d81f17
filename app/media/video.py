"""Encodes frames to an H.264 file in a separate thread, while more frames are decoded.

Owns the encoder, its bounded queue, and that the finished file appears atomically. Takes arrays of bytes in
host memory; must not know tensors, devices or jobs.
"""

import errno
import logging
import queue
import threading
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import Self

import av
import numpy as np
from numpy.typing import NDArray

from adaptive.types import VideoShape
from app.artifacts.local_folder import part_of, publish
from app.media.audio import AudioSamples, AudioTrack
from app.media.colorimetry.video_colour import BT709, LIMITED
from app.media.metadata.mp4_comment import fill_room, room_for
from app.media.metadata.note import Note
from app.media.video_pixels import PictureWriter

log = logging.getLogger(__name__)

# x264's constant quality: 18 is near transparent.
CRF = 18
PRESET = "medium"
# Frames that the encoder buffers before it returns the first. With the preset's 40, half of a usual clip is
# decoded by then, and much is left to encode when decoding ends.
LOOKAHEAD_FRAMES = 10
OPTIONS = {"crf": str(CRF), "preset": PRESET, "rc-lookahead": str(LOOKAHEAD_FRAMES)}
NO_SPACE = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})

Frames = NDArray[np.uint8]


class VideoWriteError(Exception):
    """The video could not be written; `disk_full` is True if the disk had no space left."""

    def __init__(self, message: str, *, disk_full: bool = False) -> None:
        self.disk_full = disk_full
        super().__init__(message)


@dataclass(frozen=True, slots=True)
class _Chunk:
    frames: Callable[[], Frames]
    done: Callable[[], None]


class VideoWriter:
    """Writes exactly `shape.frames` frames to `path` as faststart mp4; a context manager.

    `sound` is cut or padded with silence to the length of the video. `note` goes into the file's tags;
    `finish` may replace its comment. `write` returns once the queue has room, so at most `queue_chunks`
    chunks wait between decoder and encoder. The next `write` or `finish` raises an error of the encoder's
    thread. Leaving the block without `finish` deletes the unfinished file. Raises `ValueError` for odd sizes.
    """

    def __init__(
        self,
        path: Path,
        shape: VideoShape,
        fps: int | Fraction,
        sound: AudioSamples | None = None,
        *,
        note: Note | None = None,
        queue_chunks: int = 2,
    ) -> None:
        if shape.height % 2 or shape.width % 2:
            raise ValueError(f"yuv420p needs even sizes, got {shape.width}x{shape.height}")
        self.frames_written = 0
        self._path = path
        self._shape = shape
        self._fps = Fraction(fps)
        self._sound = sound
        self._note = note
        self._room = None if note is None else room_for(note.comment)
        self._queue: queue.Queue[_Chunk | None] = queue.Queue(queue_chunks)
        self._final: Note | None = None
        self._error: BaseException | None = None
        self._discard = threading.Event()
        self._thread = threading.Thread(target=self._run, name="video-encoder", daemon=True)
        self._thread.start()

    def write(self, frames: Frames) -> None:
        """Queue frames `[f, height, width, 3]` of uint8 RGB. The array must not change afterwards."""
        self.write_later(lambda: frames)

    def write_later(self, frames: Callable[[], Frames], done: Callable[[], None] = lambda: None) -> None:
        """Queue frames that `frames()` returns once they are ready; `done()` is called after encoding them.

        Both run in the encoder's thread, so that a copy from a device overlaps with encoding.
        """
        self._put(_Chunk(frames, done))

    def check(self) -> None:
        """Raise the encoder thread's error as `VideoWriteError`, if there is one."""
        if self._error is None:
            return
        full = isinstance(self._error, OSError) and self._error.errno in NO_SPACE
        what = "the disk is full" if full else str(self._error)
        raise VideoWriteError(f"writing {self._path.name} failed: {what}", disk_full=full) from self._error

    def finish(self, note: Note | None = None) -> None:
        """Wait for the encoder; afterwards the file is complete and durable. Raises `VideoWriteError`.

        The comment of `note` replaces that of the constructor's.
        """
        self._final = note
        self._put(None)
        self._thread.join()
        self.check()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._discard.set()
        while self._thread.is_alive():
            try:
                self._queue.put_nowait(None)
            except queue.Full:
                self._thread.join(0.05)
            else:
                self._thread.join()
        part_of(self._path).unlink(missing_ok=True)

    def _put(self, item: _Chunk | None) -> None:
        while True:
            self.check()
            try:
                return self._queue.put(item, timeout=0.2)
            except queue.Full:
                continue

    def _run(self) -> None:
        try:
            with av.open(
                str(part_of(self._path)), "w", format="mp4", options={"movflags": "+faststart"}
            ) as file:
                self._encode(file)
            if not self._discard.is_set():
                if self.frames_written != self._shape.frames:
                    raise ValueError(f"{self._shape.frames} frames expected, got {self.frames_written}")
                self._write_comment()
                publish(self._path)
        except BaseException as error:
            self._error = error

    def _write_comment(self) -> None:
        for note in (self._final, self._note):  # the first may be too long
            if note is not None and self._room is not None:
                if fill_room(part_of(self._path), self._room, note.comment):
                    return
                log.warning("comment_not_written file=%s bytes=%d", self._path.name, len(note.comment))

    def _encode(self, file: "av.container.OutputContainer") -> None:
        if self._note is not None and self._room is not None:
            file.metadata.update({**self._note.tags(), "comment": self._room})
        stream = file.add_stream("libx264", rate=self._fps, options=OPTIONS)
        stream.width, stream.height = self._shape.width, self._shape.height
        stream.pix_fmt = "yuv420p"
        context = stream.codec_context
        context.time_base = 1 / self._fps
        context.colorspace = context.color_primaries = context.color_trc = BT709
        context.color_range = LIMITED
        pictures = PictureWriter()
        sound = None if self._sound is None else AudioTrack(file, self._sound, self._shape.frames / self._fps)
        while (chunk := self._queue.get()) is not None and not self._discard.is_set():
            for frame in chunk.frames():
                picture = pictures.frame(frame)
                picture.pts = self.frames_written
                picture.time_base = context.time_base
                file.mux(stream.encode(picture))
                self.frames_written += 1
                if sound is not None:
                    sound.write_until(self.frames_written / self._fps)
            chunk.done()
        file.mux(stream.encode(None))
        if sound is not None:
            sound.finish()
