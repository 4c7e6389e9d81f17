"""Makes uploaded images into what browsers show."""

import io
from contextlib import nullcontext
from typing import Final

from PIL import Image

from app.media.images import ImageLimits, Place, open_image
from app.media.pictures.containers import format_of

SIDE: Final = 1024
QUALITY: Final = 85
MEDIA_TYPES: Final = {
    "JPEG": "image/jpeg",
    "PNG": "image/png",
    "WEBP": "image/webp",
    "GIF": "image/gif",
    "BMP": "image/bmp",
    "AVIF": "image/avif",
    "HEIC": "image/heic",
    "TIFF": "image/tiff",
}
_NOT_SHOWN: Final = frozenset({"HEIC", "TIFF"})


def media_type(data: bytes) -> str:
    """The media type of an accepted image."""
    return MEDIA_TYPES[format_of(data)]


def for_browsers(data: bytes, limits: ImageLimits, place: Place = nullcontext) -> tuple[bytes, str]:
    """An image that browsers show, and its media type.

    This is the file itself, or, for HEIC and TIFF, a JPEG of at most `SIDE` pixels a side. Raises
    `ImageRejected`. `place` as for `open_image`.
    """
    if format_of(data) not in _NOT_SHOWN:
        return data, media_type(data)
    image = open_image(data, limits, place)
    image.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)
    file = io.BytesIO()
    image.save(file, "JPEG", quality=QUALITY)
    return file.getvalue(), MEDIA_TYPES["JPEG"]
