"""What is found in an image file, whatever its format."""

from dataclasses import dataclass

from app.media.pictures.containers.colour_space import ColourSpace


@dataclass(frozen=True, slots=True)
class Contents:
    """An image file taken apart.

    `data` is what the decoder of `format` reads: the file without its optional metadata. `size` is the
    width and height in pixels that the file claims, before `orientation` (as in EXIF, 1 to 8) is applied.
    `profile` is an ICC profile; `space` is a colour space given by numbers, None for sRGB. A picture that
    covers a part of a `canvas` (GIF) lies there with its corner at `corner`. `ignored` names metadata that
    were unreadable. `pieces_pixels` is the number of pixels of all tiles together, where a picture consists
    of tiles.
    """

    format: str
    data: bytes
    size: tuple[int, int]
    orientation: int = 1
    profile: bytes | None = None
    space: ColourSpace | None = None
    canvas: tuple[int, int] | None = None
    corner: tuple[int, int] = (0, 0)
    ignored: tuple[str, ...] = ()
    pieces_pixels: int = 0

    @property
    def largest_size(self) -> tuple[int, int]:
        """The larger of picture and canvas, side by side."""
        wide, high = self.canvas or self.size
        return max(wide, self.size[0]), max(high, self.size[1])
