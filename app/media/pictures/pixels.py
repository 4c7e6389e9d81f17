"""Decodes the pixels of an image that was taken apart. Must not know limits or processes."""

import io
import logging
from typing import Any, Final

from PIL import AvifImagePlugin, Image, TiffImagePlugin, UnidentifiedImageError

from app.media.pictures import colour
from app.media.pictures.containers import bmp
from app.media.pictures.containers.contents import Contents
from app.media.pictures.rejection import ImageRejected, damaged, unsupported

log = logging.getLogger(__name__)

# Pillow's own limit warns or raises depending on a process-wide number. `ImageLimits` is stricter and always
# raises.
Image.MAX_IMAGE_PIXELS = None
# Each of its threads takes address space, which is limited where AVIF is decoded.
AvifImagePlugin.DEFAULT_MAX_THREADS = 2
# Pillow's own reader of uncompressed files mixes the planes of 16 bits, and knows no YCbCr of fewer samples.
TiffImagePlugin.READ_LIBTIFF = True

_ORIENTATION: Final = 0x0112  # the EXIF tag
_TURNS: Final = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def turned(size: tuple[int, int], orientation: int) -> tuple[int, int]:
    """The width and height that a picture has after its orientation was applied."""
    return (size[1], size[0]) if orientation >= 5 else size


def checked(contents: Contents) -> tuple[tuple[int, int], tuple[str, ...]]:
    """Read the image to its end. Returns its upright size in pixels, and the metadata that `upright` ignores.

    Raises `ImageRejected`.
    """
    image, orientation = _loaded(contents, only_checked=True)
    # A reduced JPEG has other pixels than the file.
    size = contents.canvas or (contents.size if contents.format == "JPEG" else image.size)
    return turned(size, orientation), _transform(contents, image.mode)[1]


def upright(contents: Contents) -> Image.Image:
    """Decode the image as upright sRGB with 8 bits a channel; transparency is blended over white.

    Raises `ImageRejected`.
    """
    image, orientation = _loaded(contents)
    transform, ignored = _transform(contents, image.mode)
    if ignored:
        log.warning("image_metadata_ignored format=%s ignored=%s", contents.format, ",".join(ignored))
    shown = colour.to_srgb(image, transform)
    del image
    if contents.canvas not in (None, contents.size):
        assert contents.canvas is not None
        canvas = Image.new("RGB", contents.canvas, "white")
        canvas.paste(shown, contents.corner)
        shown = canvas
    turn = _TURNS.get(orientation)
    return shown if turn is None else shown.transpose(turn)


def _transform(contents: Contents, mode: str) -> tuple[colour.Conversion, tuple[str, ...]]:
    """The conversion to sRGB, and what was ignored on the way."""
    try:
        return colour.transform_of(contents.profile, contents.space, mode), contents.ignored
    except colour.UnusableProfile:
        return colour.transform_of(None, contents.space, mode), ("colour profile",)


def _loaded(contents: Contents, *, only_checked: bool = False) -> tuple[Image.Image, int]:
    """The decoded image and the orientation that is still to be applied."""
    try:
        if contents.format == "HEIC":
            return _heic(contents), contents.orientation
        data = bmp.without_runs(contents.data) if contents.format == "BMP" else contents.data
        image = Image.open(io.BytesIO(data), formats=(contents.format,))
        if image.size != contents.size:
            raise damaged(f"it claims two sizes, {contents.size} and {image.size}")
        if only_checked:
            # For JPEG, this reads the whole stream but decodes an eighth of each side.
            image.draft(image.mode, (image.width // 8, image.height // 8))
        image.load()
        orientation = contents.orientation
        if contents.format == "AVIF":  # Pillow puts the file's rotation there
            orientation = image.getexif().get(_ORIENTATION, 1)
        return image, orientation
    except ImageRejected:
        raise
    except UnidentifiedImageError:
        if contents.format in ("TIFF", "BMP"):
            raise unsupported(f"is a {contents.format} of a rare kind") from None
        raise ImageRejected("not_an_image", f"the file is no valid {contents.format}") from None
    except Exception as error:  # on uploaded bytes it means that the image is invalid
        raise damaged(str(error)) from None


def _heic(contents: Contents) -> Image.Image:
    """The primary picture; libheif applies its rotation."""
    import pi_heif
    from pi_heif import options

    options.THUMBNAILS = options.DEPTH_IMAGES = options.AUX_IMAGES = False
    options.DECODE_THREADS = 1
    opened: Any = pi_heif.open_heif(io.BytesIO(contents.data), convert_hdr_to_8bit=True)
    image = opened[opened.primary_index]
    data, mode = image.data, image.mode
    result = Image.frombuffer(mode, image.size, data, "raw", mode, image.stride, 1)
    return result.convert("RGBA") if mode == "RGBa" else result
