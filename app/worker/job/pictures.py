"""Writes the pictures of a job: previews before its decode, the thumbnail, the first and the last frame.

They are no part of the video. Where the device has no memory for one, it is left out. Must not know the job
table.
"""

import logging
from collections.abc import Callable, Collection

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from adaptive.device.out_of_memory import is_out_of_memory
from app.artifacts.local_folder import JobArtifacts
from app.jobs import Json
from app.media.metadata.note import Note
from app.media.metadata.png_text import add_note
from app.media.thumbnails import write_jpeg, write_png
from app.worker.decoding import Decoding
from app.worker.device_errors import OutOfMemory
from app.worker.frame_transfer import to_pixels

log = logging.getLogger(__name__)


def write_previews(
    decoding: Decoding, artifacts: JobArtifacts, on_event: Callable[[str, Json], None]
) -> None:
    """Write pictures of some frames, decoded small and alone; `on_event` tells each."""
    previews = enumerate(decoding.previews())
    while True:
        try:
            number, (frame, picture) = next(previews)
            pixels = to_pixels(picture.unsqueeze(1))[0].cpu().numpy()
        except StopIteration:
            return
        except Exception as error:
            if not isinstance(error, OutOfMemory) and not is_out_of_memory(error):
                raise
            log.warning("previews_skipped reason=%s", error)
            return
        write_jpeg(artifacts.preview(number), pixels)
        on_event("preview", {"number": number, "frame": frame})


def write_thumbnail(frames: Tensor, artifacts: JobArtifacts) -> bool:
    """Write the first of `frames` (`[1, 3, f, H, W]` in -1..1) small, and whole as the video's first frame.

    Returns whether it could.
    """
    pixels = _pixels_of(frames[0, :, :1])
    if pixels is None:
        return False
    write_first_pixels(pixels, artifacts)
    return True


def write_first_pixels(pixels: NDArray[np.uint8], artifacts: JobArtifacts) -> None:
    """As `write_thumbnail`, for the pixels `[H, W, 3]` of the first frame."""
    write_jpeg(artifacts.thumbnail, pixels)
    write_png(artifacts.frame("first"), pixels)


def write_last_frame(frames: Tensor, artifacts: JobArtifacts) -> bool:
    """Write the last of `frames` as the video's last frame; returns whether it could."""
    pixels = _pixels_of(frames[0, :, -1:])
    if pixels is None:
        return False
    write_png(artifacts.frame("last"), pixels)
    return True


def write_asked_frames(frames: Tensor, first: int, asked: Collection[int], artifacts: JobArtifacts) -> None:
    """Write those of `frames` whose numbers were asked for, as the pixels that the VAE decoded.

    `first` is the number of the first one. Where the device has no memory, the host converts it.
    """
    for number in sorted(asked):
        if first <= number < first + frames.shape[2]:
            frame = frames[0, :, number - first : number - first + 1]
            pixels = _pixels_of(frame)
            if pixels is None:
                pixels = to_pixels(frame.cpu())[0].numpy()
            write_png(artifacts.exact_frame(number), pixels)


def add_notes(note: Note | None, asked: Collection[int], artifacts: JobArtifacts) -> None:
    """Say in the frames that this decode has written how they were made."""
    if note is None:
        return
    for path in (*map(artifacts.frame, ("first", "last")), *map(artifacts.exact_frame, asked)):
        if path.is_file():
            add_note(path, note)


def _pixels_of(frame: Tensor) -> NDArray[np.uint8] | None:
    """RGB of one frame `[3, 1, H, W]`; None where the device has no memory for it."""
    try:
        pixels: NDArray[np.uint8] = to_pixels(frame)[0].cpu().numpy()
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        log.warning("picture_skipped reason=%s", error)
        return None
    return pixels
