"""Writes pixels as small JPEG files: previews during the decode and the finished video's thumbnail."""

import io
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from app.artifacts.local_folder import write_whole

SIDE = 512
QUALITY = 82


def write_jpeg(path: Path, pixels: NDArray[np.uint8]) -> None:
    """Write RGB pixels `[height, width, 3]` as a JPEG of at most `SIDE` pixels a side, atomically."""
    picture = Image.fromarray(pixels)
    picture.thumbnail((SIDE, SIDE))
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=QUALITY)
    write_whole(path, file.getvalue())
