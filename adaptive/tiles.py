"""Geometry of tiles: where they lie, how they overlap, and which numbers of them are worth trying.

Owns exact strips and overlapping approximate tiles, in latent pixels. Pure arithmetic; it does not know
tensors, memory or policies.
"""

import math
from itertools import pairwise
from typing import NamedTuple

from adaptive.types import LatentShape, SpatialTiles

# Approximate tiles share about this many video pixels with each neighbour, and are blended across them.
OVERLAP_PIXELS = 128
# Numbers of strips worth trying: each halves the size of the one before.
DIVISIONS = (2, 4, 8, 16, 32, 64)


class Span(NamedTuple):
    """Rows or columns `start` to `stop`, in latent pixels."""

    start: int
    stop: int

    @property
    def size(self) -> int:
        """Number of rows or columns."""
        return self.stop - self.start


def strips(height: int, rows: int) -> tuple[Span, ...]:
    """`height` latent rows in at most `rows` strips of equal height; the last one may be smaller."""
    size = math.ceil(height / rows)
    return tuple(Span(start, min(start + size, height)) for start in range(0, height, size))


def strip_numbers(height: int) -> tuple[int, ...]:
    """Numbers of strips worth trying, fewest first: at most one strip for each of `height` latent rows."""
    return tuple(sorted({strip_count(height, rows) for rows in DIVISIONS if rows < 2 * height} - {1}))


def strip_count(height: int, rows: int) -> int:
    """Number of strips that `strips` returns."""
    return math.ceil(height / math.ceil(height / rows))


def overlap_latent_pixels(spatial_ratio: int) -> int:
    """Latent pixels that neighbouring approximate tiles share; even, at least 2."""
    return max(2, OVERLAP_PIXELS // spatial_ratio // 2 * 2)


def overlapping_spans(length: int, parts: int, overlap: int) -> tuple[Span, ...]:
    """`length` latent pixels in `parts` of about equal size, each extended by `overlap / 2` at its borders.

    Raises `ValueError` where a part is smaller than the overlap, because more than two tiles would overlap in
    one place.
    """
    edges = [round(part * length / parts) for part in range(parts + 1)]
    if parts > 1 and min(b - a for a, b in pairwise(edges)) < overlap:
        raise ValueError(f"{length} latent pixels cannot be cut into {parts} parts that overlap by {overlap}")
    half = overlap // 2
    return tuple(Span(max(0, start - half), min(length, stop + half)) for start, stop in pairwise(edges))


def tile_grids(shape: LatentShape, spatial_ratio: int) -> tuple[SpatialTiles, ...]:
    """Grids of approximate tiles worth trying, fewest tiles first.

    Tiles are about square and no smaller than their overlap. A side that is too short for two tiles is not
    cut.
    """
    overlap = overlap_latent_pixels(spatial_ratio)
    found = []
    for parts in (2, 3, 4, 6, 8, 12, 16, 24, 32):
        tile = max(shape.height, shape.width) / parts
        rows, columns = (
            max(1, min(round(side / tile), side // overlap)) for side in (shape.height, shape.width)
        )
        grid = SpatialTiles(rows, columns)
        if grid.count > 1 and grid not in found:
            found.append(grid)
    return tuple(found)


def largest_tile(shape: LatentShape, tiles: SpatialTiles, spatial_ratio: int) -> tuple[int, int]:
    """Height and width of the largest approximate tile with its overlaps, in latent pixels."""
    overlap = overlap_latent_pixels(spatial_ratio)
    height = max(span.size for span in overlapping_spans(shape.height, tiles.rows, overlap))
    width = max(span.size for span in overlapping_spans(shape.width, tiles.columns, overlap))
    return height, width
