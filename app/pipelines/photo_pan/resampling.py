"""Resamples boxes of a photograph to frames, with Lanczos filters at positions between pixels."""

from collections.abc import Iterable, Iterator

from PIL import Image

from app.pipelines.photo_pan.camera import Box, Size

# A photograph with at least so many pixels a pixel of the closest frame is first reduced, by whole factors: a
# frame then reads fewer pixels.
_REDUCED_FROM = 6.0
_REDUCED_TO = 3.0


def frames(photo: Image.Image, wanted: Iterable[Box], size: Size) -> Iterator[Image.Image]:
    """The RGB frame of each box, of `size` pixels."""
    wanted = list(wanted)
    closest = min((right - left) / size[0] for left, _, right, _ in wanted)
    factor = int(closest / _REDUCED_TO) if closest >= _REDUCED_FROM else 1
    source = photo.convert("RGB")
    if factor > 1:
        source = source.reduce(factor)
    width, height = source.size
    for left, top, right, bottom in wanted:
        box = (
            left / factor,
            top / factor,
            min(right / factor, width),
            min(bottom / factor, height),
        )
        yield source.resize(size, Image.Resampling.LANCZOS, box=box)
