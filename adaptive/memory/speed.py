"""How long a decode takes on one device, by arithmetic on what earlier decodes took.

Owns: the law of seconds over shape and chunk size, its fit, and the observations behind it. Must not know:
torch, clocks, rungs that do not fit.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Any, Self

from adaptive.memory.profile import MemoryProfile
from adaptive.types import LatentShape

KEPT_A_RUNG = 24  # observations of one chunk size; older ones go, rarely used rungs are not crowded out
SWEEPS = 400
# Corrections are learned by chunk size, in powers of two: convolutions on few frames do not fill a device.
_BATCHED = 0


@dataclass(frozen=True, slots=True)
class SpeedModel:
    """Seconds of a decode: `work` a latent pixel and frame, plus for each pass through the decoder `step`,
    and `border` a latent pixel.

    A pass costs kernel launches, and the kept frames at its border are copied and computed on again.
    Streaming takes one pass more than there are chunks, which drains the layers. `corrections` multiply the
    law, by chunk size in powers of two (0: batched).
    """

    work_seconds: float
    step_seconds: float
    border_seconds: float = 0.0
    corrections: Mapping[int, float] = field(default_factory=dict)

    def seconds(self, shape: LatentShape, frames_per_chunk: int) -> float:
        """Predicted seconds of one decode."""
        work, passes, borders = _features(shape, frames_per_chunk)
        law = self.work_seconds * work + self.step_seconds * passes + self.border_seconds * borders
        return law * self.corrections.get(_class_of(shape.frames, frames_per_chunk), 1.0)


# Before anything was timed only proportions can be told: one frame at a time takes about a third longer than
# all at once (a median of 1.36 in the 113 of tests/bench/results/recordings-*cpu.jsonl).
UNTIMED = SpeedModel(work_seconds=1.0, step_seconds=0.0, border_seconds=0.4)
GUESS_WEIGHT = 0.1  # of a decode that was timed


@dataclass(frozen=True, slots=True)
class Timing:
    """One decode that was timed."""

    shape: LatentShape
    frames_per_chunk: int
    seconds: float


class Speeds:
    """What decodes of each VAE took on one device. Not thread-safe: one decoder owns it."""

    def __init__(self) -> None:
        self._timings: dict[str, list[Timing]] = {}
        self._models: dict[str, SpeedModel] = {}

    def observe(
        self, profile: MemoryProfile, shape: LatentShape, frames_per_chunk: int, seconds: float
    ) -> None:
        """Learn from a decode that ran on one rung from beginning to end."""
        if seconds <= 0:
            return
        key, size = speed_key(profile), min(frames_per_chunk, shape.frames)
        rung = _class_of(shape.frames, size)
        known = self._timings.get(key, [])
        same = [each for each in known if _class_of(each.shape.frames, each.frames_per_chunk) == rung]
        crowded = same[0] if len(same) >= KEPT_A_RUNG else None
        kept = [each for each in known if each is not crowded]
        self._timings[key] = [*kept, Timing(shape, size, seconds)]
        self._models.pop(key, None)

    def forget(self, profile: MemoryProfile) -> None:
        """As if no decode of this VAE had been timed."""
        key = speed_key(profile)
        self._timings.pop(key, None)
        self._models.pop(key, None)

    def model(self, profile: MemoryProfile) -> SpeedModel | None:
        """The law fitted to this VAE's decodes in its dtype; None before the first."""
        key = speed_key(profile)
        if key not in self._models and self._timings.get(key):
            self._models[key] = fit(self._timings[key])
        return self._models.get(key)

    def observations(self, profile: MemoryProfile) -> int:
        """Decodes of this VAE that were timed."""
        return len(self._timings.get(speed_key(profile), ()))

    def summary(self) -> dict[str, Any]:
        """Each VAE's fitted law, as JSON values; the inverse is `from_summary`."""
        laws = {}
        for key, timings in self._timings.items():
            law = self._models.setdefault(key, fit(timings))
            laws[key] = {
                "work_seconds": law.work_seconds,
                "step_seconds": law.step_seconds,
                "border_seconds": law.border_seconds,
                "corrections": {str(rung): factor for rung, factor in law.corrections.items()},
                "observations": len(timings),
            }
        return laws

    @classmethod
    def from_summary(cls, laws: Mapping[str, Any]) -> Self:
        """Speeds that predict as the ones summarised did, for a process that only plans."""
        speeds = cls()
        for key, law in laws.items():
            corrections = {int(rung): float(factor) for rung, factor in law["corrections"].items()}
            speeds._models[key] = SpeedModel(
                law["work_seconds"], law["step_seconds"], law["border_seconds"], corrections
            )
        return speeds

    def to_json(self) -> dict[str, Any]:
        """All observations, as JSON values."""
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
    """What speed depends on beside the device: the VAE's configuration and dtype."""
    return f"{profile.traits.family}/{profile.dtype}/{profile.config_digest}"


def fit(timings: Sequence[Timing]) -> SpeedModel:
    """Least squares of relative errors over non-negative coefficients, then a correction for each chunk size.

    Times span orders of magnitude: an absolute error would only see the longest. Ways that were never timed
    are taken, with little weight, to stand to those that were as in `UNTIMED`: two batched decodes cannot
    tell what a pass costs, and the law must not say that it costs nothing, or everything.
    """
    seen = {_class_of(each.shape.frames, each.frames_per_chunk) for each in timings}
    guesses = [guess for each in timings for guess in _guesses(each) if guess[0] not in seen]
    supposed = [each for _, each in guesses]
    weights = [1.0] * len(timings) + [GUESS_WEIGHT] * len(supposed)
    rows = [_scaled(each) for each in [*timings, *supposed]]
    work, step, border = _non_negative(rows, weights)
    law = SpeedModel(work, step, border)
    ratios: dict[int, list[float]] = {}
    for each in timings:
        predicted = law.seconds(each.shape, each.frames_per_chunk)
        rung = _class_of(each.shape.frames, each.frames_per_chunk)
        ratios.setdefault(rung, []).append(each.seconds / predicted)
    corrections = {rung: median(seen) for rung, seen in ratios.items()}
    return SpeedModel(work, step, border, corrections)


def _scaled(timing: Timing) -> list[float]:
    return [each / timing.seconds for each in _features(timing.shape, timing.frames_per_chunk)]


def _guesses(timing: Timing) -> list[tuple[int, Timing]]:
    """What the same decode would take in one call, and one frame at a time, in proportion."""
    shape = timing.shape
    unit = timing.seconds / UNTIMED.seconds(shape, timing.frames_per_chunk)
    return [
        (_class_of(shape.frames, size), Timing(shape, size, unit * UNTIMED.seconds(shape, size)))
        for size in {1, shape.frames}
    ]


def _non_negative(rows: Sequence[Sequence[float]], weights: Sequence[float]) -> list[float]:
    """Coefficients >= 0 that bring every row's sum nearest to one (coordinate descent on the normal
    equations).
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
    """Latent pixels over all frames, passes, and latent pixels at the border of every pass."""
    passes = math.ceil(shape.frames / frames_per_chunk)
    passes += passes > 1
    return float(shape.area * shape.frames), float(passes), float(passes * shape.area)


def _class_of(latent_frames: int, frames_per_chunk: int) -> int:
    return _BATCHED if frames_per_chunk >= latent_frames else 2 ** round(math.log2(frames_per_chunk))


def _sizes(shape: LatentShape) -> tuple[int, int, int, int, int]:
    return shape.batch, shape.channels, shape.frames, shape.height, shape.width
