"""Converts pictures to sRGB with 8 bits a channel, perceptually, and lays transparent ones over white.

Works in strips of rows, so that a large picture needs memory for the result and little else.
"""

import io
from typing import TYPE_CHECKING, Final, TypeAlias

from PIL import Image, ImageCms

from app.media.pictures.containers.colour_space import ColourSpace

STRIP_PIXELS: Final = 2**20
# lcms takes long to evaluate a long chain of small elements. Real profiles with such chains are small.
_MAX_CHAIN_BYTES: Final = 64 * 1024
_SPACES: Final = {"RGB ": "RGB", "GRAY": "L", "CMYK": "CMYK", "Lab ": "LAB"}

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

Transform: TypeAlias = ImageCms.ImageCmsTransform
Table: TypeAlias = "NDArray[np.uint8]"  # the RGB of each shade, [256 or 65536, 3]
Conversion: TypeAlias = "Transform | Table | None"


class UnusableProfile(ValueError):
    """The ICC profile is damaged, or is one for other pixels than the picture has."""


def transform_of(profile: bytes | None, space: ColourSpace | None, mode: str) -> Conversion:
    """The conversion of pixels in Pillow's `mode` to sRGB; None if their values are sRGB's.

    Raises `UnusableProfile`.
    """
    kind = colours(mode)
    if profile is not None:
        return _transform(_opened(profile, kind), mode)
    if kind == "LAB":
        return _transform(ImageCms.createProfile("LAB"), mode)
    if space is not None and kind in ("RGB", "L"):
        # Imported here, as numpy elsewhere: it takes most of the time that a process for one image starts in.
        from app.media.pictures.icc_profile import grey_profile, rgb_profile

        made = rgb_profile(space) if kind == "RGB" else grey_profile(space.gamma)
        return _transform(ImageCms.ImageCmsProfile(io.BytesIO(made)), mode)
    return None


def colours(mode: str) -> str:
    """Pillow's mode without transparency and depth: RGB, L, CMYK or LAB."""
    if mode in ("CMYK", "LAB"):
        return mode
    return "L" if mode in ("1", "L", "LA", "La") or mode.startswith("I;16") else "RGB"


def to_srgb(image: Image.Image, transform: Conversion) -> Image.Image:
    """The picture as RGB."""
    result = Image.new("RGB", image.size)
    rows = max(1, STRIP_PIXELS // image.width)
    for top in range(0, image.height, rows):
        box = (0, top, image.width, min(image.height, top + rows))
        result.paste(_strip(image.crop(box), transform), box)
    return result


def _strip(strip: Image.Image, transform: Conversion) -> Image.Image:
    opaque, alpha = strip, None
    if strip.mode.startswith("I;16"):
        import numpy as np

        values = np.asarray(strip)
        key = strip.info.get("transparency")
        alpha = None if key is None else Image.fromarray(np.where(values == key, 0, 255).astype(np.uint8))
        if transform is None:  # Pillow's own conversion clips all values above 255
            opaque = Image.fromarray((values >> 8).astype(np.uint8))
    elif strip.has_transparency_data:
        full = strip.convert("RGBA")
        alpha = full.getchannel("A")
        opaque = full.convert("L" if colours(strip.mode) == "L" else "RGB")
    elif strip.mode not in ("L", "CMYK", "LAB"):
        opaque = strip.convert("L" if strip.mode == "1" else "RGB")
    if transform is None:
        shown = opaque.convert("RGB")
    elif isinstance(transform, ImageCms.ImageCmsTransform):
        shown = transform.apply(opaque)
    else:
        import numpy as np

        shown = Image.fromarray(transform[np.asarray(opaque)])
    if alpha is None:
        return shown
    white = Image.new("RGB", strip.size, "white")
    white.paste(shown, mask=alpha)
    return white


def _transform(profile: object, mode: str) -> Conversion:
    kind = "I;16" if mode.startswith("I;16") else colours(mode)
    grey = colours(mode) == "L"
    try:
        transform = ImageCms.buildTransform(
            profile,  # type: ignore[arg-type]
            ImageCms.createProfile("sRGB"),
            kind,
            "RGB",
            ImageCms.Intent.PERCEPTUAL,
            ImageCms.Flags.NOOPTIMIZE if grey else ImageCms.Flags.NONE,
        )
    except ImageCms.PyCMSError as error:
        raise UnusableProfile(str(error)) from None
    if not grey:
        return transform
    # Optimized, lcms interpolates between 33 shades, which is wrong by 9 of 255 for linear ones.
    import numpy as np

    shades = (
        np.arange(65536, dtype=np.uint16).reshape(256, 256)
        if kind == "I;16"
        else np.arange(256, dtype=np.uint8).reshape(1, 256)
    )
    return np.asarray(transform.apply(Image.fromarray(shades))).reshape(-1, 3)


def _opened(profile: bytes, kind: str) -> ImageCms.ImageCmsProfile:
    if b"mpet" in profile and len(profile) > _MAX_CHAIN_BYTES:
        raise UnusableProfile(f"it has chains of elements and {len(profile):,} bytes")
    try:
        opened = ImageCms.ImageCmsProfile(io.BytesIO(profile))
    except (OSError, ValueError) as error:
        raise UnusableProfile(str(error)) from None
    given = opened.profile.xcolor_space
    if _SPACES.get(given) != kind:
        raise UnusableProfile(f"it is one for {given.strip()}, not for {kind}")
    return opened
