"""Chooses the shape of a video whose request leaves width or height out: it follows the image.

Knows the rules of model entries; `app.media.fit` has the arithmetic. Whether the shape is allowed is checked
afterwards, as for a shape that the client gives.
"""

from app.media.fit import Size, nearest_shape, shape_like, side_like
from app.models.entries import ModelEntry
from app.pipelines.photo_pan import rules as photo_pan

# A side that is chosen is never shorter than this part of the model's own shorter default side: a panorama
# is cropped rather than made by a model that has never seen a strip.
LEAST_PART = 4
LONGEST_SIDE = 16_384


def shape_for(
    entry: ModelEntry,
    image: Size,
    *,
    width: int | None,
    height: int | None,
    num_frames: int | None,
    cropped: bool = True,
) -> dict[str, int]:
    """Return the fields that are not given, so that the video has the image's aspect ratio.

    With neither side, the video has at most as many pixels as the model's default one. A model that makes
    certain shapes only gets the one nearest to the image. `photo-pan` moves over an image that is `cropped`,
    and so has a size of its own.
    """
    if entry.shapes:
        return _listed_shape(entry, image, width, height, num_frames)
    least, most = _sides(entry)
    multiple = entry.size_multiple
    if width is not None:
        return {"height": side_like(width, image[1], image[0], multiple=multiple, least=least)}
    if height is not None:
        return {"width": side_like(height, image[0], image[1], multiple=multiple, least=least)}
    pixels = min(entry.defaults.width * entry.defaults.height, entry.limits.max_pixels)
    if entry.source == photo_pan.SOURCE:
        own, pixels = photo_pan.size_for(image)
        if own is not None and cropped:
            return {"width": own[0], "height": own[1]}
    wide, high = shape_like(image, pixels=pixels, multiple=multiple, least=least, most=most)
    return {"width": wide, "height": high}


def largest_size(entry: ModelEntry, wanted: Size) -> Size | None:
    """Return the largest size of the model with about the aspect ratio of `wanted`; None if there is none."""
    if entry.shapes:
        return None
    least, most = _sides(entry)
    found = shape_like(
        wanted, pixels=entry.limits.max_pixels, multiple=entry.size_multiple, least=least, most=most
    )
    return found if found[0] * found[1] <= entry.limits.max_pixels else None


def _sides(entry: ModelEntry) -> Size:
    if entry.source == photo_pan.SOURCE:
        return photo_pan.SIDE_RANGE_PX
    return min(entry.defaults.width, entry.defaults.height) // LEAST_PART, LONGEST_SIDE


def _listed_shape(
    entry: ModelEntry, image: Size, width: int | None, height: int | None, num_frames: int | None
) -> dict[str, int]:
    """Return the sides of the nearest shape that agrees with what is given, and its length if none is given.

    Of two shapes of one size the one of the model's default length is taken. If no shape agrees, the sides
    of the default are returned, which the model's rules then refuse with the list of its shapes.
    """
    shapes = [tuple(map(int, shape.split("x"))) for shape in entry.shapes]
    asked = (width, height, num_frames)
    agreeing = [shape for shape in shapes if all(a in (None, b) for a, b in zip(asked, shape, strict=True))]
    if not agreeing:
        return {"width": width or entry.defaults.width, "height": height or entry.defaults.height}
    wide, high = nearest_shape(image, [(shape[0], shape[1]) for shape in agreeing])
    lengths = [shape[2] for shape in agreeing if shape[:2] == (wide, high)]
    default = entry.defaults.num_frames
    frames = default if default in lengths else max(lengths)
    return {"width": wide, "height": high, "num_frames": num_frames or frames}
