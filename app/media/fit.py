"""How a picture fills a video of another shape: the shape that follows it, what is cut, what is added.

Arithmetic over sizes (width, height) in pixels, and its use on one image. Must not know jobs or models.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from types import MappingProxyType
from typing import Any, TypeAlias

from PIL import Image

Size: TypeAlias = tuple[int, int]

FITS = ("cover", "contain", "stretch")
# The part of what is left over that lies at the left and at the top.
GRAVITIES: Mapping[str, tuple[Fraction, Fraction]] = MappingProxyType(
    {
        "center": (Fraction(1, 2), Fraction(1, 2)),
        "north": (Fraction(1, 2), Fraction(0)),
        "northeast": (Fraction(1), Fraction(0)),
        "east": (Fraction(1), Fraction(1, 2)),
        "southeast": (Fraction(1), Fraction(1)),
        "south": (Fraction(1, 2), Fraction(1)),
        "southwest": (Fraction(0), Fraction(1)),
        "west": (Fraction(0), Fraction(1, 2)),
        "northwest": (Fraction(0), Fraction(0)),
    }
)
_SIDES = ("left", "top", "right", "bottom")


def shape_like(picture: Size, *, pixels: int, multiple: int, least: int, most: int) -> Size:
    """Return the shape of at most `pixels` pixels that suits the picture best.

    Both sides are multiples of `multiple` from `least` to `most`. Of all such shapes it has the largest
    product of its share of `pixels` and the square of the picture's share that a crop to it would keep: a cut
    costs twice what an equally smaller video does.
    """
    wide, high = picture
    lowest = max(multiple, math.ceil(least / multiple) * multiple)
    best, best_value = (lowest, lowest), -1.0
    for width in range(lowest, min(most, pixels // lowest) + 1, multiple):
        ideal = width * high / wide
        limit = min(most, pixels // width) // multiple * multiple
        for rounded in (math.floor(ideal / multiple) * multiple, math.ceil(ideal / multiple) * multiple):
            height = max(lowest, min(limit, rounded))
            value = width * height * _kept(picture, (width, height)) ** 2
            if value > best_value:
                best, best_value = (width, height), value
    return best


def side_like(given: int, own: int, other: int, *, multiple: int, least: int) -> int:
    """Return the side that keeps a picture's aspect ratio: `own` and `other` are the picture's sides, `given`
    is the video's side for `other`.
    """
    lowest = max(multiple, math.ceil(least / multiple) * multiple)
    return max(lowest, round(own * given / other / multiple) * multiple)


def nearest_shape(picture: Size, shapes: list[Size]) -> Size:
    """Return the shape of which a crop of the picture keeps most; of equals the larger one."""
    return max(shapes, key=lambda shape: (round(_kept(picture, shape), 9), shape[0] * shape[1]))


def _kept(picture: Size, shape: Size) -> float:
    """The part of the picture that is left after a crop to the aspect ratio of `shape`."""
    ratio = picture[0] * shape[1] / (picture[1] * shape[0])
    return min(ratio, 1 / ratio)


@dataclass(frozen=True, slots=True)
class Framing:
    """How a picture of size `picture` fills a video of size `size`.

    `shown` is the part of the picture that is seen, in the picture's pixels; `filled` is the part of the
    video that it fills. Both are (left, top, right, bottom).
    """

    picture: Size
    size: Size
    shown: tuple[float, float, float, float]
    filled: tuple[int, int, int, int]

    def cut(self) -> dict[str, int]:
        """Return the rows and columns that are cut off at each side, in the picture's pixels."""
        return _outside(self.picture, self.shown)

    def bars(self) -> dict[str, int]:
        """Return the width of the bars at each side, in the video's pixels."""
        return _outside(self.size, self.filled)

    def stretch(self) -> float:
        """Return by which factor the picture is wider than its height makes it: 1 if nothing is stretched."""
        (left, top, right, bottom), (x, y, beyond, below) = self.shown, self.filled
        factor = (beyond - x) * (bottom - top) / ((right - left) * (below - y))
        # A shape is a whole number of pixels, so a factor of less than one pixel is none.
        return 1.0 if abs(factor - 1) * max(beyond - x, below - y) <= 1 else factor

    def cut_share(self) -> float:
        """Return the part of the picture that is cut off, from 0 to 1."""
        left, top, right, bottom = self.shown
        return 1 - (right - left) * (bottom - top) / (self.picture[0] * self.picture[1])

    def as_json(self) -> dict[str, Any]:
        """Return the JSON that a job shows."""
        return {
            "width": self.picture[0],
            "height": self.picture[1],
            "cut": self.cut(),
            "cut_share": round(self.cut_share(), 4),
            "bars": self.bars(),
            "stretch": round(self.stretch(), 4),
            "detail": self.detail(),
        }

    def detail(self) -> str:
        """Return a sentence that says what became of the picture."""
        picture, video = ("{}x{}".format(*size) for size in (self.picture, self.size))
        if cut := _listed(self.cut()):
            share = f"{100 * self.cut_share():.0f} % of the image"
            return f"{picture} is cropped to {video}: {cut} are cut ({share})"
        if bars := _listed(self.bars()):
            return f"{picture} is shown whole in {video}, with bars of {bars}"
        if (stretch := self.stretch()) != 1:
            factor, way = (stretch, "wider") if stretch > 1 else (1 / stretch, "higher")
            return f"{picture} is shown whole in {video}, stretched: {100 * (factor - 1):.0f} % {way}"
        return f"{picture} is shown whole in {video}"


def frame(picture: Size, size: Size, fit: str = "cover", gravity: str = "center") -> Framing:
    """Return how a picture fills a video.

    `cover` fills the video and cuts what is left over, `contain` shows the whole picture between bars, and
    `stretch` changes its aspect ratio. `gravity` is the side that is kept, or that the picture lies at.
    """
    across, down = GRAVITIES[gravity]
    (wide, high), (width, height) = picture, size
    whole = (0.0, 0.0, float(wide), float(high))
    full = (0, 0, width, height)
    if fit == "stretch" or wide * height == high * width:
        return Framing(picture, size, whole, full)
    if fit == "cover":
        ratio = width / height  # the floats of Pillow's own `ImageOps.fit`
        shown_wide, shown_high = (ratio * high, high) if wide / high >= ratio else (wide, wide / ratio)
        left, top = (wide - shown_wide) * float(across), (high - shown_high) * float(down)
        return Framing(picture, size, (left, top, left + shown_wide, top + shown_high), full)
    if wide * height > high * width:
        width, height = width, max(1, round(high * width / wide))
    else:
        width, height = max(1, round(wide * height / high)), height
    x, y = math.floor((size[0] - width) * across), math.floor((size[1] - height) * down)
    return Framing(picture, size, whole, (x, y, x + width, y + height))


def cropped(picture: Size, size: Size, gravity: str = "center") -> Framing:
    """Return how a picture that is at least as large as the video fills it without being scaled."""
    across, down = GRAVITIES[gravity]
    left, top = offset(picture[0] - size[0], across), offset(picture[1] - size[1], down)
    shown = (float(left), float(top), float(left + size[0]), float(top + size[1]))
    return Framing(picture, size, shown, (0, 0, *size))


def scaled_size(picture: Size, size: Size, fit: str) -> Size:
    """Return the whole picture's size after scaling: at least `size` to cover it, at most to be contained."""
    (wide, high), (width, height) = picture, size
    if fit == "stretch":
        return size
    if fit == "contain":
        left, top, right, bottom = frame(picture, size, fit).filled
        return right - left, bottom - top
    scale = max(Fraction(width, wide), Fraction(height, high))
    return math.ceil(wide * scale), math.ceil(high * scale)


def offset(spare: int, share: Fraction) -> int:
    """Return how many of the pixels that are left over, or missing if negative, lie before the picture."""
    return math.floor(abs(spare) * share)


def framed(image: Image.Image, size: Size, fit: str = "cover", gravity: str = "center") -> Image.Image:
    """Return the RGB image scaled, and cut or set between black bars, to `size`."""
    framing = frame(image.size, size, fit, gravity)
    left, top, right, bottom = framing.filled
    scaled = image.resize((right - left, bottom - top), Image.Resampling.LANCZOS, box=framing.shown)
    if scaled.size == size:
        return scaled
    canvas = Image.new(image.mode, size)
    canvas.paste(scaled, (left, top))
    return canvas


def _outside(size: Size, part: tuple[float, float, float, float]) -> dict[str, int]:
    left, top, right, bottom = part
    return dict(zip(_SIDES, map(round, (left, top, size[0] - right, size[1] - bottom)), strict=True))


def _listed(sides: Mapping[str, int]) -> str:
    return ", ".join(f"{count} pixels at the {side}" for side, count in sides.items() if count)
