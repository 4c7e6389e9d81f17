"""Reads pictures with libvips or ImageMagick, and judges what the service makes of the corpus."""

import io
import shutil
import subprocess
import tempfile
from pathlib import Path

import numpy as np
from picture_corpus import Case, Pixels, icc
from PIL import Image

from app.media.images import ImageLimits, ImageRejected, check_image, open_image

PROGRAMS = ("vipsthumbnail", "convert")


def missing() -> list[str]:
    """The programs that are not installed."""
    return [name for name in PROGRAMS if shutil.which(name) is None]


def read(data: bytes, reader: str) -> Pixels:
    """The upright picture in sRGB over white `[height, width, 3]`, as the program reads it."""
    with tempfile.TemporaryDirectory() as folder:
        given, made = Path(folder, "given"), Path(folder, "made.png")
        given.write_bytes(data)
        if reader == "magick":
            command = [
                "convert",
                f"{given}[0]",
                "-auto-orient",
                "-colorspace",
                "sRGB",
                "-depth",
                "8",
                "-strip",
            ]
            command.append(str(made))
        else:
            command = ["vipsthumbnail", str(given), "--size", "9999x9999>", "-o", f"{made}[strip]"]
        if reader == "vips with profiles":
            # Its own profile of sRGB has tables for the perceptual intent, which change colours.
            srgb = Path(folder, "srgb.icc")
            srgb.write_bytes(icc("RGB ", "srgb"))
            command += ["--eprofile", str(srgb), "--intent", "perceptual"]
        subprocess.run(command, check=True, capture_output=True, timeout=500)
        shown = Image.open(io.BytesIO(made.read_bytes())).convert("RGBA")
    white = Image.new("RGBA", shown.size, "white")
    return np.asarray(Image.alpha_composite(white, shown).convert("RGB"))


def means(picture: Pixels, rows: int, columns: int) -> Pixels:
    """The mean colour in the middle of each field `[rows, columns, 3]`."""
    high, wide = picture.shape[0] // rows, picture.shape[1] // columns
    fields = picture[: rows * high, : columns * wide].reshape(rows, high, columns, wide, 3)
    inner = fields[:, high // 4 : high - high // 4, :, wide // 4 : wide - wide // 4]
    return np.asarray(inner.astype(float).mean((1, 3)))


def fault(case: Case, *, with_reader: bool = True) -> str | None:
    """What is wrong in how the service takes the case; None if it is right.

    The size must be right to the pixel, the colours to 2 of 255 of what is known and of what the reader sees.
    """
    try:
        info = check_image(case.data, ImageLimits())
        image = open_image(case.data)
    except ImageRejected as refusal:
        return None if refusal.code == case.code else f"refused as {refusal.code}: {refusal}"
    if case.code is not None:
        return f"taken, but {case.code} is right"
    if not (image.size == (info.width, info.height) == case.size):
        return f"{image.size} and {(info.width, info.height)} instead of {case.size}"
    shown = np.asarray(image)
    if case.colours is not None:
        off = np.abs(means(shown, *case.colours.shape[:2]) - case.colours).max()
        if off > case.near:
            return f"off by {off:.0f} of 255"
    if case.reader is None or not with_reader:
        return None
    try:
        other = read(case.data, case.reader)
    except subprocess.CalledProcessError as error:
        return f"{case.reader} cannot read it: {error.stderr.decode(errors='replace')[-200:]}"
    if other.shape != shown.shape:
        return f"{case.reader} reads {other.shape[1]} x {other.shape[0]} pixels"
    off = np.abs(means(shown, 4, 6) - means(other, 4, 6)).max()
    return f"off by {off:.0f} of 255 from {case.reader}" if off > 2 else None
