"""Writes the pictures of a job: previews before its decode, and the thumbnail.

They are no part of the video. Where the device has no memory for one, it is left out. Must not know the job
table.
"""

import logging
from collections.abc import Callable

from torch import Tensor

from adaptive.device.out_of_memory import is_out_of_memory
from app.artifacts.local_folder import JobArtifacts
from app.jobs import Json
from app.media.thumbnails import write_jpeg
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
    """Write the first of `frames` (`[1, 3, f, H, W]` in -1..1) as a picture; returns whether it could."""
    try:
        pixels = to_pixels(frames[0, :, :1])[0].cpu().numpy()
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        log.warning("thumbnail_skipped reason=%s", error)
        return False
    write_jpeg(artifacts.thumbnail, pixels)
    return True
