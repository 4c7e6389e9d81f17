"""The seam score: how much a video shows where approximate parts of it were joined.

At a seam two decodes of the same place meet which saw different surroundings. The score is the mean step
between neighbouring pixels (or frames) across the seams over the mean step beside them, less one: 0 where
nothing shows, positive where an edge stands that does not belong there, negative where blending two different
pictures has blurred them.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from torch import Tensor


class SeamScore:
    """Gathers the score of one video from its pieces `[B, C, f, H, W]`, in order."""

    def __init__(self, rows: Sequence[int] = (), columns: Sequence[int] = (), half_width: int = 1) -> None:
        """Seams run before these `rows` and `columns` of pixels, blended over `half_width` to either side."""
        self._lines = {3: tuple(rows), 4: tuple(columns)}
        self._half_width = half_width
        self._across: list[tuple[float, int]] = []
        self._beside: list[tuple[float, int]] = []
        self._before: Tensor | None = None

    @property
    def value(self) -> float | None:
        """The score so far; None before a seam was seen, or where all beside the seams is flat."""
        across, beside = _mean(self._across), _mean(self._beside)
        return None if across is None or not beside else across / beside - 1

    def add_picture(self, frames: Tensor) -> None:
        """Look at the seams inside finished frames."""
        wide = self._half_width
        for dim, lines in self._lines.items():
            for line in lines:
                self._across += _steps(frames, dim, range(line - wide, line + wide))
                self._beside += _steps(frames, dim, range(line - 2 * wide, line - wide))
                self._beside += _steps(frames, dim, range(line + wide, line + 2 * wide))

    def add_chunk(self, frames: Tensor) -> None:
        """Look at the seam in time before a chunk that was decoded apart from the one before."""
        first, last = frames[:, :, :2], frames[:, :, -2:]
        if self._before is not None:
            joined = (frames[:, :, :1] - self._before[:, :, -1:]).abs_()
            self._across.append((joined.float().sum().item(), joined.numel()))
            for pair in (self._before, first):
                self._beside += _steps(pair, 2, range(1, 2))
        self._before = last.clone()


def _steps(frames: Tensor, dim: int, lines: Iterable[int]) -> list[tuple[float, int]]:
    """Sum and number of the steps over the given lines, each between a line's two sides."""
    inside = [line for line in lines if 1 <= line < frames.shape[dim]]
    if not inside:
        return []
    start, count = inside[0], len(inside)
    steps = (frames.narrow(dim, start, count) - frames.narrow(dim, start - 1, count)).abs_().float()
    return [(steps.sum().item(), steps.numel())]


def _mean(parts: Sequence[tuple[float, int]]) -> float | None:
    total = sum(count for _, count in parts)
    return sum(value for value, _ in parts) / total if total else None
