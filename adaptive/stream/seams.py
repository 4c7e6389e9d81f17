"""The seam score: how visible the joins between separately decoded parts of a video are.

At a seam, two decodes meet that saw different surroundings. The score compares the mean absolute difference
between neighbouring pixels (or frames) across the seams with the same mean near them: their ratio, less one.
It is 0 if nothing shows, positive for a visible edge, and negative if blending has blurred the seam.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from torch import Tensor


class SeamScore:
    """Gathers the score of one video from its frames `[B, C, f, H, W]`, given in order."""

    def __init__(self, rows: Sequence[int] = (), columns: Sequence[int] = (), half_width: int = 1) -> None:
        """Seams lie before these `rows` and `columns` of pixels.

        Parts are blended over `half_width` pixels on either side of a seam.
        """
        self._lines = {3: tuple(rows), 4: tuple(columns)}
        self._half_width = half_width
        self._across: list[tuple[float, int]] = []
        self._nearby: list[tuple[float, int]] = []
        self._before: Tensor | None = None

    @property
    def value(self) -> float | None:
        """The score so far.

        None before the first seam, or if neighbouring pixels near the seams do not differ at all.
        """
        across, nearby = _mean(self._across), _mean(self._nearby)
        return None if across is None or not nearby else across / nearby - 1

    def add_spatial_seams(self, frames: Tensor) -> None:
        """Include the seams between the tiles of finished frames."""
        wide = self._half_width
        for dim, lines in self._lines.items():
            for line in lines:
                self._across += _differences(frames, dim, range(line - wide, line + wide))
                self._nearby += _differences(frames, dim, range(line - 2 * wide, line - wide))
                self._nearby += _differences(frames, dim, range(line + wide, line + 2 * wide))

    def add_temporal_seam(self, frames: Tensor) -> None:
        """Include the seam in time between this chunk and the one before, which were decoded separately."""
        first, last = frames[:, :, :2], frames[:, :, -2:]
        if self._before is not None:
            joined = (frames[:, :, :1] - self._before[:, :, -1:]).abs_()
            self._across.append((joined.float().sum().item(), joined.numel()))
            for pair in (self._before, first):
                self._nearby += _differences(pair, 2, range(1, 2))
        self._before = last.clone()


def _differences(frames: Tensor, dim: int, lines: Iterable[int]) -> list[tuple[float, int]]:
    """Return sum and number of the absolute differences across the given lines of dimension `dim`."""
    inside = [line for line in lines if 1 <= line < frames.shape[dim]]
    if not inside:
        return []
    start, count = inside[0], len(inside)
    differences = (frames.narrow(dim, start, count) - frames.narrow(dim, start - 1, count)).abs_().float()
    return [(differences.sum().item(), differences.numel())]


def _mean(parts: Sequence[tuple[float, int]]) -> float | None:
    total = sum(count for _, count in parts)
    return sum(value for value, _ in parts) / total if total else None
