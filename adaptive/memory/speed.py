"""How long a decode takes on one device: a model of seconds, fitted to earlier decodes.

Owns the formula of seconds over shape and chunk size, its fit, and the timings behind it. It does not know
torch, clocks or whether a rung fits.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median
from threading import RLock
from typing import Any, Self

from adaptive.memory.profile import MemoryProfile
from adaptive.types import LatentShape

KEPT_PER_SIZE_CLASS = 24  # newest timings of each chunk-size class, so that rare classes are not crowded out
SWEEPS = 400
# Corrections are learned by chunk size, in powers of two: convolutions on few frames do not use a device
# fully.
_BATCHED = 0


@dataclass(frozen=True, slots=True)
class SpeedModel:
    """Seconds of a decode, as a linear model.

    `work_seconds` count for each latent pixel of each frame. Each pass through the decoder adds
    `step_seconds`, which are kernel launches, and `border_seconds` for each latent pixel, because the frames
    kept at its border are copied and computed again. Streaming takes one pass more than there are chunks; the
    last one drains the layers. `corrections` multiply the result, by chunk size in powers of two (0:
    batched).
    """

    work_seconds: float
    step_seconds: float
    border_seconds: float = 0.0
    corrections: Mapping[int, float] = field(default_factory=dict)

    def seconds(self, shape: LatentShape, frames_per_chunk: int) -> float:
        """Predicted seconds of one decode in chunks of `frames_per_chunk` latent frames."""
        work, passes, borders = _features(shape, frames_per_chunk)
        linear = self.work_seconds * work + self.step_seconds * passes + self.border_seconds * borders
        return linear * self.corrections.get(_size_class(shape.frames, frames_per_chunk), 1.0)


# Before any decode is timed only proportions are known: one frame at a time takes about a third longer than
# all at once (a median of 1.36 in the 113 decodes of tests/bench/results/recordings-*cpu.jsonl).
UNTIMED = SpeedModel(work_seconds=1.0, step_seconds=0.0, border_seconds=0.4)
GUESS_WEIGHT = 0.1  # of an estimated timing in the fit; a measured one has weight 1


@dataclass(frozen=True, slots=True)
class Timing:
    """One decode that was timed."""

    shape: LatentShape
    frames_per_chunk: int
    seconds: float


class Speeds:
    """Timings of each VAE's decodes on one device, and the models fitted to them.

    Decodes of several threads may share it.
    """

    def __init__(self) -> None:
        self._lock = RLock()
        self._timings: dict[str, list[Timing]] = {}
        self._models: dict[str, SpeedModel] = {}

    def observe(
        self, profile: MemoryProfile, shape: LatentShape, frames_per_chunk: int, seconds: float
    ) -> None:
        """Learn from a decode that ran with one chunk size from beginning to end."""
        if seconds <= 0:
            return
        with self._lock:
            self._add(speed_key(profile), Timing(shape, min(frames_per_chunk, shape.frames), seconds))

    def _add(self, key: str, timing: Timing) -> None:
        size_class = _size_class(timing.shape.frames, timing.frames_per_chunk)
        known = self._timings.get(key, [])
        same = [each for each in known if _size_class(each.shape.frames, each.frames_per_chunk) == size_class]
        oldest = same[0] if len(same) >= KEPT_PER_SIZE_CLASS else None
        kept = [each for each in known if each is not oldest]
        self._timings[key] = [*kept, timing]
        self._models.pop(key, None)

    def forget(self, profile: MemoryProfile) -> None:
        """Drop all timings of this VAE."""
        key = speed_key(profile)
        with self._lock:
            self._timings.pop(key, None)
            self._models.pop(key, None)

    def model(self, profile: MemoryProfile) -> SpeedModel | None:
        """The model fitted to this VAE's decodes in its dtype; None before the first."""
        key = speed_key(profile)
        with self._lock:
            if key not in self._models and self._timings.get(key):
                self._models[key] = fit(self._timings[key])
            return self._models.get(key)

    def observations(self, profile: MemoryProfile) -> int:
        """Number of timed decodes of this VAE."""
        return len(self._timings.get(speed_key(profile), ()))

    def summary(self) -> dict[str, Any]:
        """Each VAE's fitted model, as JSON values; the inverse is `from_summary`."""
        summary = {}
        for key, timings in self._timings.items():
            model = self._models.setdefault(key, fit(timings))
            summary[key] = {
                "work_seconds": model.work_seconds,
                "step_seconds": model.step_seconds,
                "border_seconds": model.border_seconds,
                "corrections": {str(size): factor for size, factor in model.corrections.items()},
                "observations": len(timings),
            }
        return summary

    @classmethod
    def from_summary(cls, summary: Mapping[str, Any]) -> Self:
        """Speeds that predict as the summarized ones do, for a process that only plans."""
        speeds = cls()
        for key, model in summary.items():
            corrections = {int(size): float(factor) for size, factor in model["corrections"].items()}
            speeds._models[key] = SpeedModel(
                model["work_seconds"], model["step_seconds"], model["border_seconds"], corrections
            )
        return speeds

    def to_json(self) -> dict[str, Any]:
        """All timings, as JSON values."""
        return {
            key: [[*_sizes(each.shape), each.frames_per_chunk, each.seconds] for each in timings]
            for key, timings in self._timings.items()
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """The inverse of `to_json`."""
        speeds = cls()
        for key, rows in data.items():
            speeds._timings[key] = [
                Timing(LatentShape(*sizes), size, seconds) for *sizes, size, seconds in rows
            ]
        return speeds


def speed_key(profile: MemoryProfile) -> str:
    """Key of a VAE's timings: its family, dtype and configuration."""
    return f"{profile.traits.family}/{profile.dtype}/{profile.config_digest}"


def fit(timings: Sequence[Timing]) -> SpeedModel:
    """Least squares of relative errors over non-negative coefficients, then a correction for each chunk size.

    Times span orders of magnitude, so the longest would dominate an absolute error. Batched and per-frame
    decodes that were never timed are estimated from the timed ones by the proportions of `UNTIMED`, and count
    with little weight. Otherwise a fit to two batched decodes alone, which do not show what a pass costs,
    could make a pass cost nothing or all of the time.
    """
    seen = {_size_class(each.shape.frames, each.frames_per_chunk) for each in timings}
    guesses = [guess for each in timings for guess in _guesses(each) if guess[0] not in seen]
    guessed = [each for _, each in guesses]
    weights = [1.0] * len(timings) + [GUESS_WEIGHT] * len(guessed)
    rows = [_scaled(each) for each in [*timings, *guessed]]
    work, step, border = _non_negative(rows, weights)
    uncorrected = SpeedModel(work, step, border)
    ratios: dict[int, list[float]] = {}
    for each in timings:
        predicted = uncorrected.seconds(each.shape, each.frames_per_chunk)
        size_class = _size_class(each.shape.frames, each.frames_per_chunk)
        ratios.setdefault(size_class, []).append(each.seconds / predicted)
    corrections = {size_class: median(found) for size_class, found in ratios.items()}
    return SpeedModel(work, step, border, corrections)


def _scaled(timing: Timing) -> list[float]:
    return [each / timing.seconds for each in _features(timing.shape, timing.frames_per_chunk)]


def _guesses(timing: Timing) -> list[tuple[int, Timing]]:
    """Estimated timings of the same decode in one call and one frame at a time, each with its size class."""
    shape = timing.shape
    unit = timing.seconds / UNTIMED.seconds(shape, timing.frames_per_chunk)
    return [
        (_size_class(shape.frames, size), Timing(shape, size, unit * UNTIMED.seconds(shape, size)))
        for size in {1, shape.frames}
    ]


def _non_negative(rows: Sequence[Sequence[float]], weights: Sequence[float]) -> list[float]:
    """Coefficients >= 0 whose weighted row sums come closest to one.

    Solved by coordinate descent on the normal equations.
    """
    width, weighted = len(rows[0]), list(zip(rows, weights, strict=True))
    gram = [[sum(w * row[i] * row[j] for row, w in weighted) for j in range(width)] for i in range(width)]
    aim = [sum(w * row[i] for row, w in weighted) for i in range(width)]
    found = [0.0] * width
    for _ in range(SWEEPS):
        for i in range(width):
            others = sum(gram[i][j] * found[j] for j in range(width) if j != i)
            found[i] = max(0.0, (aim[i] - others) / gram[i][i])
    return found


def _features(shape: LatentShape, frames_per_chunk: int) -> tuple[float, float, float]:
    """Latent pixels of all frames, number of passes, and latent pixels at the borders of all passes."""
    passes = math.ceil(shape.frames / frames_per_chunk)
    passes += passes > 1
    return float(shape.area * shape.frames), float(passes), float(passes * shape.area)


def _size_class(latent_frames: int, frames_per_chunk: int) -> int:
    return _BATCHED if frames_per_chunk >= latent_frames else 2 ** round(math.log2(frames_per_chunk))


def _sizes(shape: LatentShape) -> tuple[int, int, int, int, int]:
    return shape.batch, shape.channels, shape.frames, shape.height, shape.width
