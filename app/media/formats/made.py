"""Keeps the files that were made of a video beside it: each is made once, and again for another video."""

import os
import secrets
from pathlib import Path

from app.artifacts.local_folder import part_of
from app.media.formats.apart import ConversionFailed, ConversionInterrupted, convert_apart


def is_made(video: Path, out: Path) -> bool:
    """Whether `out` was made of this very video: another decode replaces the video. Raises `OSError`."""
    try:
        return out.stat().st_mtime_ns == video.stat().st_mtime_ns
    except FileNotFoundError:
        return False


def make(name: str, video: Path, out: Path, *, file_bytes: int) -> None:
    """Make `out`, of format `name`, unless it is made. Raises `ConversionFailed` and its kinds.

    If another decode replaces the video meanwhile, or begins and removes partial files, it is made once more.
    """
    for _ in range(2):
        if is_made(video, out) or _is_now_made(name, video, out, file_bytes):
            return
    raise ConversionInterrupted("the video was replaced while it was converted")


def _is_now_made(name: str, video: Path, out: Path, file_bytes: int) -> bool:
    """Make `out`; returns False if the video was replaced meanwhile."""
    # Named apart: another process of the same data folder may make the same file.
    part = part_of(out.with_name(f"{out.name}.{secrets.token_hex(4)}"))
    try:
        made_ns = video.stat().st_mtime_ns
        convert_apart(name, video, part, file_bytes=file_bytes)
        os.utime(part, ns=(made_ns, made_ns))
        part.replace(out)
        if is_made(video, out):
            return True
        out.unlink(missing_ok=True)
    except OSError as error:
        if not isinstance(error, FileNotFoundError) or not video.exists():
            raise ConversionFailed(f"{error.filename}: {error.strerror}") from error
    finally:
        part.unlink(missing_ok=True)
    return False
