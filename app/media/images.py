"""Checks and decodes images that clients send. Must not know HTTP or jobs.

Compares the size in the header with the limits before any pixel is decompressed, so that a decompression bomb
costs nothing. Decodes at most `LARGE_AT_ONCE` large images at a time, which bounds memory for any number of
clients.
"""

import os
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass
from typing import Final, TypeVar

from PIL import Image

from app.media.pictures import decode_process, pixels
from app.media.pictures.containers import FORMATS, take_apart
from app.media.pictures.containers.contents import Contents
from app.media.pictures.rejection import ImageRejected, too_complex

__all__ = ["FORMATS", "ImageInfo", "ImageLimits", "ImageRejected", "check_image", "open_image"]

MIN_SIDE: Final = 8
LARGE_PIXELS: Final = 4_000_000
LARGE_AT_ONCE: Final = 2
# Held while a large image is decoded; a process with many clients says with it whose turn it is.
Place = Callable[[], AbstractContextManager[object]]

_large_slots = threading.Semaphore(LARGE_AT_ONCE)
_process_slots = threading.Semaphore(LARGE_AT_ONCE)
# Threads that decode large images leave the processor to those that answer other requests.
LARGE_NICENESS: Final = 10
_large_decoders = ThreadPoolExecutor(LARGE_AT_ONCE, "large-image", lambda: _yield_processor())
Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class ImageLimits:
    """The largest image that is decoded, in pixels."""

    max_pixels: int = 64_000_000
    max_side: int = 16_384


@dataclass(frozen=True, slots=True)
class ImageInfo:
    """A checked image: its format, its upright size in pixels, and which unreadable metadata are ignored."""

    format: str
    width: int
    height: int
    ignored: tuple[str, ...] = ()


def check_image(data: bytes, limits: ImageLimits, place: Place = nullcontext) -> ImageInfo:
    """Read an image to its end without keeping its pixels. `place()` is held while a large one is decoded.

    Raises `ImageRejected` unless `open_image` would succeed, and what `place` raises.
    """
    contents = _within(data, limits)
    if contents.format in decode_process.FORMATS:
        with place(), _process_slots:
            size, ignored = decode_process.check_apart(data)
    else:
        size, ignored = _decoded(contents, place, pixels.checked)
    return ImageInfo(contents.format, *size, ignored)


def open_image(data: bytes, limits: ImageLimits | None = None, place: Place = nullcontext) -> Image.Image:
    """Decode the image as upright sRGB with 8 bits a channel; transparency is blended over white.

    Of an animation, this is the first frame. `place()` is held while a large one is decoded. Raises
    `ImageRejected`, and what `place` raises.
    """
    contents = _within(data, limits or ImageLimits())
    if contents.format in decode_process.FORMATS:
        with place(), _process_slots:
            return decode_process.open_apart(data)
    return _decoded(contents, place, pixels.upright)


def _within(data: bytes, limits: ImageLimits) -> Contents:
    """The image taken apart, if its size and the number of its parts are within the limits."""
    if not data:
        raise ImageRejected("missing_image", "the image is empty")
    contents = take_apart(data)
    _check_size(contents.largest_size, limits)
    _check_size(contents.size, limits)
    if contents.pieces_pixels > 2 * limits.max_pixels:
        raise too_complex(f"tiles with {contents.pieces_pixels:,} pixels in all")
    return contents


def _decoded(contents: Contents, place: Place, decode: Callable[[Contents], Result]) -> Result:
    """Decode in this thread, or a large image in one of the threads for these."""
    width, height = contents.largest_size
    if width * height <= LARGE_PIXELS:
        return decode(contents)
    with place(), _large_slots:
        return _large_decoders.submit(decode, contents).result()


def _yield_processor() -> None:
    if sys.platform != "linux":
        return  # elsewhere threads have no niceness of their own
    with suppress(OSError):  # forbidden by a sandbox
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), LARGE_NICENESS)


def _check_size(size: tuple[int, int], limits: ImageLimits) -> None:
    width, height = size
    if not min(size):
        raise ImageRejected("not_an_image", "the image has no pixels")
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
