"""What live tensors do not tell: the memory a decode takes beyond them, learned from finished decodes.

Owns: the margin between exact live bytes and the bytes a device must really have, per family, dtype and
strategy on one device with one build of torch. Must not know: torch, how live bytes are traced, how anything
is measured.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from adaptive.types import PeakEstimate, Strategy

MIB = 2**20
KEPT_OBSERVATIONS = 64
MOST_BELIEVED = 3  # times the cold bound


@dataclass(frozen=True, slots=True)
class Margin:
    """Bytes needed as a line over live bytes: `expected` is the middle, `upper` the bound plans are made
    with.
    """

    expected_ratio: float
    upper_ratio: float
    constant_bytes: int

    def apply(self, live_bytes: int) -> PeakEstimate:
        """Live, expected and upper bytes."""
        expected = round(live_bytes * self.expected_ratio) + self.constant_bytes // 2
        upper = round(live_bytes * self.upper_ratio) + self.constant_bytes
        return PeakEstimate(live_bytes, min(expected, upper), upper)


# Before anything is learned. CPU: resident-set growth of real decodes was 1.0 to 1.3 x live bytes
# (convolution scratch). CUDA: cuDNN workspace and fragmentation are reported as 1.0 to 3 x; the first
# out-of-memory or success corrects it.
COLD_MARGINS = {"cpu": Margin(1.15, 1.4, 8 * MIB), "cuda": Margin(1.25, 1.6, 256 * MIB)}


@dataclass(slots=True)
class Learned:
    """Ratios of needed to live bytes, newest last, and the highest ratio known to be too little."""

    ratios: list[float] = field(default_factory=list)
    too_little: float = 0.0
    too_little_age: int = 0  # observations since the out-of-memory


class Residuals:
    """Learned margins of one device and build. Not thread-safe: one decoder owns it."""

    def __init__(self, device: str = "cpu", build: str = "") -> None:
        self.device = device
        self.build = build
        self._learned: dict[str, Learned] = {}

    @property
    def _cold(self) -> Margin:
        return COLD_MARGINS["cpu" if self.device.startswith("cpu") else "cuda"]

    def estimate(self, family: str, dtype: str, strategy: Strategy, live_bytes: int) -> PeakEstimate:
        """Expected and upper bytes for a decode whose tensors alone take `live_bytes`."""
        return self._margin(family, dtype, strategy).apply(live_bytes)

    def _margin(self, family: str, dtype: str, strategy: Strategy) -> Margin:
        learned = self._learned.get(_key(family, dtype, strategy))
        if learned is None:
            return self._cold
        return _fit(learned, self._cold)

    def observe(
        self, family: str, dtype: str, strategy: Strategy, *, live_bytes: int, needed_bytes: int
    ) -> None:
        """Learn from a decode that finished: it needed `needed_bytes` where its tensors took `live_bytes`."""
        learned = self._learned.setdefault(_key(family, dtype, strategy), Learned())
        above = needed_bytes - self._cold.constant_bytes // 2  # what does not grow with the decode
        learned.ratios = [*learned.ratios, max(1.0, above / live_bytes)][-KEPT_OBSERVATIONS:]
        # Any strategy's success ages every failure: a strategy that is no longer chosen could not clear
        # itself.
        for each in self._learned.values():
            each.too_little_age += 1

    def out_of_memory(
        self, family: str, dtype: str, strategy: Strategy, *, live_bytes: int, free_bytes: int
    ) -> None:
        """Learn that `free_bytes` were not enough: a lower bound until later successes, of any strategy, age
        it.
        """
        learned = self._learned.setdefault(_key(family, dtype, strategy), Learned())
        # What failed with plenty free failed for another reason, and must not count as needing all of that.
        most = MOST_BELIEVED * self._cold.upper_ratio
        learned.too_little = max(learned.too_little, min(free_bytes / live_bytes, most))
        learned.too_little_age = 0

    def to_json(self) -> dict[str, Any]:
        """All that was learned, as JSON values."""
        entries = {
            key: {"ratios": each.ratios, "too_little": each.too_little, "age": each.too_little_age}
            for key, each in self._learned.items()
        }
        return {"device": self.device, "build": self.build, "learned": entries}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """The inverse of `to_json`."""
        residuals = cls(data["device"], data["build"])
        for key, each in data["learned"].items():
            residuals._learned[key] = Learned(list(each["ratios"]), each["too_little"], each["age"])
        return residuals

    def save(self, path: Path) -> None:
        """Write to `path`, atomically."""
        draft = path.with_name(path.name + ".new")
        draft.write_text(json.dumps(self.to_json(), indent=1))
        draft.replace(path)

    @classmethod
    def load(cls, path: Path, *, device: str, build: str) -> Self:
        """What was learned on this device and build; empty where that is nothing, or of another build."""
        if path.exists():
            residuals = cls.from_json(json.loads(path.read_text()))
            if (residuals.device, residuals.build) == (device, build):
                return residuals
        return cls(device, build)


def _key(family: str, dtype: str, strategy: Strategy) -> str:
    return f"{family}/{dtype}/{strategy}"


TRUSTED_OBSERVATIONS = 5


def _fit(learned: Learned, cold: Margin) -> Margin:
    """Median and a high quantile of what was seen; with few observations the cold margin still counts."""
    ratios = sorted(learned.ratios)
    trust = min(1.0, len(ratios) / TRUSTED_OBSERVATIONS)
    expected = ratios[len(ratios) // 2] if ratios else cold.expected_ratio
    spread = (ratios[-1] - ratios[0]) if ratios else 0.0
    seen_upper = (ratios[-1] if ratios else cold.upper_ratio) + max(0.05, spread / 2)
    upper = trust * seen_upper + (1 - trust) * max(cold.upper_ratio, seen_upper)
    if learned.too_little_age < TRUSTED_OBSERVATIONS:
        upper = max(upper, learned.too_little * 1.1)
    return Margin(min(expected, upper), upper, cold.constant_bytes)
