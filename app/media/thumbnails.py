"""Writes pixels as small JPEG files, such as a finished video's thumbnail, and whole frames as PNG files."""

import io
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from app.artifacts.local_folder import part_of, write_whole

SIDE = 512
QUALITY = 82
PNG_LEVEL = 1  # of zlib: four times as fast as its default, and files a sixth larger


def write_jpeg(path: Path, pixels: NDArray[np.uint8], *, side: int = SIDE, durable: bool = True) -> None:
    """Write RGB pixels `[height, width, 3]` as a JPEG of at most `side` pixels a side, atomically.

    A file that is not `durable` is not synced to the disk: it is soon replaced.
    """
    picture = Image.fromarray(pixels)
    picture.thumbnail((side, side))
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=QUALITY)
    if durable:
        write_whole(path, file.getvalue())
        return
    part = part_of(path)
    part.write_bytes(file.getvalue())
    part.replace(path)


def write_png(path: Path, pixels: NDArray[np.uint8]) -> None:
    """Write RGB pixels `[height, width, 3]` as a PNG of the same pixels, atomically."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG", compress_level=PNG_LEVEL)
    write_whole(path, file.getvalue())
