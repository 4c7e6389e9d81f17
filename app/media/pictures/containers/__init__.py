"""Takes image files apart before a decoder sees them. Decodes no pixel; must not know Pillow.

A decoder gets only what its pixels need. Optional metadata (EXIF, XMP, text, thumbnails, further pictures)
are left out, so that they can neither spoil the pixels nor cost the decoder memory or time. What is of use
in them, the orientation and the colour space, is read here within limits. What cannot be read counts as
absent.
"""

from collections.abc import Callable
from typing import Final

from app.media.pictures.containers import bmff, bmp, gif, jpeg, png, tiff, webp
from app.media.pictures.containers.contents import Contents
from app.media.pictures.rejection import ImageRejected

FORMATS: Final = ("JPEG", "PNG", "WebP", "HEIC", "AVIF", "TIFF", "BMP", "GIF")

_SIGNATURES: Final[tuple[tuple[int, bytes, str, Callable[[bytes], Contents]], ...]] = (
    (0, b"\xff\xd8\xff", "JPEG", jpeg.contents),
    (0, b"\x89PNG\r\n\x1a\n", "PNG", png.contents),
    (8, b"WEBP", "WEBP", webp.contents),
    (4, b"ftyp", "", bmff.contents),
    (0, b"II*\0", "TIFF", tiff.contents),
    (0, b"MM\0*", "TIFF", tiff.contents),
    (0, b"II+\0", "TIFF", tiff.contents),
    (0, b"MM\0+", "TIFF", tiff.contents),
    (0, b"BM", "BMP", bmp.contents),
    (0, b"GIF87a", "GIF", gif.contents),
    (0, b"GIF89a", "GIF", gif.contents),
)


def take_apart(data: bytes) -> Contents:
    """Return what a decoder needs of the file, and its size, orientation and colour space.

    Raises `ImageRejected`.
    """
    for at, signature, _, contents in _SIGNATURES:
        if data[at : at + len(signature)] == signature:
            return contents(data)
    message = f"the file is not an image in an accepted format ({', '.join(FORMATS)})"
    raise ImageRejected("not_an_image", message)


def format_of(data: bytes) -> str:
    """The format of an image that was accepted, as in `Contents`."""
    for at, signature, name, _ in _SIGNATURES:
        if name and data[at : at + len(signature)] == signature:
            return name
    return take_apart(data).format  # HEIC or AVIF: one container
