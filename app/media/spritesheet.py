"""Makes a sheet of small pictures of a finished video, spread evenly over its time.

Owns the choice of frames, the layout, and that a sheet is made once for a video. Must not know jobs or HTTP.
PyAV is imported when the first sheet is made, so that the API process starts without it.
"""

import io
import os
import secrets
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from PIL import Image

from app.artifacts.local_folder import part_of

COLUMNS = 4
CELLS = 16
CELL_SIDE = 256
QUALITY = 82
# Above this many frames only key frames are decoded: a sheet takes seconds at most, however long the video.
MOST_FRAMES = 1000


class SheetError(Exception):
    """The sheet cannot be made; `busy`: others are being made, and it may work later."""

    def __init__(self, message: str, *, busy: bool = False) -> None:
        self.busy = busy
        super().__init__(message)


class SheetMaker:
    """Makes one sheet at a time, so that requests for sheets take one processor at most."""

    def __init__(self, *, wait_seconds: float = 20.0) -> None:
        self._turn = threading.Lock()
        self._wait_seconds = wait_seconds

    def sheet(self, video: Path, out: Path) -> Path:
        """Return `out`, a JPEG of `video`; made now unless it was made from this very video.

        Raises `SheetError` if the video cannot be read, or if no turn came in time.
        """
        from av import FFmpegError

        try:
            made_ns = video.stat().st_mtime_ns
            if _is_of(out, made_ns):
                return out
            if not self._turn.acquire(timeout=self._wait_seconds):
                raise SheetError("other sheets are being made", busy=True)
            try:
                if not _is_of(out, made_ns):
                    _write(out, _joined(_cells(video)), made_ns)
            finally:
                self._turn.release()
        except (OSError, ValueError, FFmpegError) as error:
            raise SheetError(f"{video.name} cannot be read: {error}") from error
        return out


def _is_of(sheet: Path, made_ns: int) -> bool:
    """Whether the sheet was made from the video of that time: another decode replaces the video."""
    try:
        return sheet.stat().st_mtime_ns == made_ns
    except FileNotFoundError:
        return False


def _write(out: Path, sheet: Image.Image, made_ns: int) -> None:
    file = io.BytesIO()
    sheet.save(file, "JPEG", quality=QUALITY)
    # Named apart: another API process of the same data folder may make the same sheet.
    part = part_of(out.with_name(f"{out.name}.{secrets.token_hex(4)}"))
    part.write_bytes(file.getvalue())
    os.utime(part, ns=(made_ns, made_ns))
    part.replace(out)


def _joined(cells: list[Image.Image]) -> Image.Image:
    width, height = cells[0].size
    columns = min(COLUMNS, len(cells))
    rows = -(-len(cells) // columns)
    sheet = Image.new("RGB", (columns * width, rows * height))
    for number, cell in enumerate(cells):
        sheet.paste(cell, (number % columns * width, number // columns * height))
    return sheet


def _cells(video: Path) -> list[Image.Image]:
    """At most `CELLS` frames of the video, evenly spread from its first frame on."""
    import av

    with av.open(str(video)) as container:
        stream = container.streams.video[0]
        count = stream.frames
        if count > MOST_FRAMES:
            stream.codec_context.skip_frame = "NONKEY"
        seconds = float((stream.duration or 0) * (stream.time_base or 0))
        cells = [_cell(frame) for frame in _spread(container.decode(stream), seconds, min(CELLS, count))]
    if not cells:
        raise ValueError("it has no frames")
    return cells


def _spread(frames: Iterator[Any], seconds: float, count: int) -> Iterator[Any]:
    taken = 0
    for frame in frames:
        # The first frame at or after `taken / count` of the video's time.
        if taken < count and (frame.time or 0.0) + 1e-6 >= taken * seconds / count:
            taken = max(taken + 1, int(((frame.time or 0.0) + 1e-6) * count / seconds) + 1 if seconds else 0)
            yield frame


def _cell(frame: Any) -> Image.Image:
    picture: Image.Image = frame.to_image()
    picture.thumbnail((CELL_SIDE, CELL_SIDE))
    return picture
