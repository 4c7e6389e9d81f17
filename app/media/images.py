"""Checks and decodes images that clients send. Must not know HTTP or jobs.

Compares the size in the header with the limits before any pixel is decompressed, so that a decompression bomb
costs nothing. Decodes at most `LARGE_AT_ONCE` large images at a time, which bounds memory for any number of
clients.
"""

import io
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Final

from PIL import Image, ImageOps, UnidentifiedImageError

from app.media import image_structure

FORMATS: Final = ("JPEG", "PNG", "WEBP")
ORIENTATION: Final = 0x0112  # the EXIF tag
MIN_SIDE: Final = 8
LARGE_PIXELS: Final = 4_000_000
LARGE_AT_ONCE: Final = 2

# Pillow's own limit warns or raises depending on a process-wide number. `ImageLimits` is stricter and always
# raises.
Image.MAX_IMAGE_PIXELS = None
_large_slots = threading.Semaphore(LARGE_AT_ONCE)


class ImageRejected(ValueError):
    """The bytes are not an acceptable image. `code` is a stable error code for clients."""

    def __init__(self, code: str, message: str) -> None:
        self.code = code
        super().__init__(message)


@dataclass(frozen=True, slots=True)
class ImageLimits:
    """The largest image that is decoded, in pixels."""

    max_pixels: int = 64_000_000
    max_side: int = 16_384


@dataclass(frozen=True, slots=True)
class ImageInfo:
    """A checked image: its format, and its size in pixels with the EXIF orientation applied."""

    format: str
    width: int
    height: int


def check_image(data: bytes, limits: ImageLimits) -> ImageInfo:
    """Read an image to its end without keeping its pixels.

    Raises `ImageRejected` unless `open_image` would succeed.
    """
    with _opened(data, limits) as image, _damage_rejected(), _decode_slot(image):
        kind, (width, height) = image.format or "", image.size
        # For JPEG, this reads the whole stream but decodes an eighth of each side.
        image.draft(image.mode, (width // 8, height // 8))
        image.load()
        if image.getexif().get(ORIENTATION) in (5, 6, 7, 8):
            width, height = height, width
    return ImageInfo(kind, width, height)


def open_image(data: bytes, limits: ImageLimits | None = None) -> Image.Image:
    """Decode the image as upright RGB with 8 bits a channel; transparency is blended over white.

    Raises `ImageRejected`.
    """
    with _opened(data, limits or ImageLimits()) as image, _damage_rejected(), _decode_slot(image):
        image.load()
        return _to_rgb(ImageOps.exif_transpose(image))


def _opened(data: bytes, limits: ImageLimits) -> Image.Image:
    if not data:
        raise ImageRejected("missing_image", "the image is empty")
    excess = image_structure.excess_parts(data)
    if excess is not None:
        raise ImageRejected("image_too_complex", f"the image has {excess}")
    _check_size(_webp_canvas(data), limits)
    with _damage_rejected():
        try:
            image = Image.open(io.BytesIO(data), formats=FORMATS)
        except UnidentifiedImageError:
            message = f"the file is not an image in an accepted format ({', '.join(FORMATS)})"
            raise ImageRejected("not_an_image", message) from None
    _check_size(image.size, limits)
    return image


@contextmanager
def _damage_rejected() -> Iterator[None]:
    """Raise any error of Pillow as `ImageRejected`: on uploaded bytes it means that the image is invalid."""
    try:
        yield
    except ImageRejected:
        raise
    except Exception as error:
        raise ImageRejected("broken_image", f"the image is damaged or truncated: {error}") from None


def _decode_slot(image: Image.Image) -> AbstractContextManager[object]:
    return _large_slots if image.width * image.height > LARGE_PIXELS else nullcontext()


def _check_size(size: tuple[int, int] | None, limits: ImageLimits) -> None:
    if size is None:
        return
    width, height = size
    if max(size) > limits.max_side or width * height > limits.max_pixels:
        raise ImageRejected(
            "image_too_large",
            f"the image has {width} x {height} pixels; at most {limits.max_side} a side and "
            f"{limits.max_pixels:,} in all are allowed",
        )
    if min(size) < MIN_SIDE:
        raise ImageRejected(
            "image_too_small",
            f"the image has {width} x {height} pixels; at least {MIN_SIDE} a side are required",
        )


def _webp_canvas(data: bytes) -> tuple[int, int] | None:
    """The canvas size in a WebP header; None for other formats.

    It must be checked before opening the file, because the decoder allocates the canvas then.
    """
    if data[:4] != b"RIFF" or data[8:12] != b"WEBP" or len(data) < 30:
        return None
    match data[12:16]:
        case b"VP8X":
            return int.from_bytes(data[24:27], "little") + 1, int.from_bytes(data[27:30], "little") + 1
        case b"VP8L":  # a signature byte, then 14 bits each, less one
            bits = int.from_bytes(data[21:25], "little")
            return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
        case b"VP8 ":  # after the key frame's tag and start code, 14 bits each and 2 of scaling
            width, height = (int.from_bytes(data[at : at + 2], "little") & 0x3FFF for at in (26, 28))
            return width, height
    return None


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        # 16-bit grey: keep the upper eight bits. Pillow's own conversion clips all values above 255.
        return image.convert("I").point(lambda value: value * (1 / 256)).convert("L").convert("RGB")
    if image.has_transparency_data:
        layer = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer).convert("RGB")
    return image.convert("RGB")
