"""What live tensors do not tell: the memory a decode takes beyond them, learned from finished decodes.

Owns: the margin between exact live bytes and the bytes a device must really have, per family, dtype and
strategy on one device. Must not know: torch, how live bytes are traced, how anything is measured.

What is beyond has three parts (`MeasuredPeak`). Workspace and fragmentation grow with the decode and are
learned as shares of its live bytes; what lies outside torch does not, and is learned in bytes: in a service's
process it is also what the video encoder holds, and taken as a share it made small decodes teach absurd ones.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from statistics import median
from typing import Any, Self

from adaptive.types import MeasuredPeak, PeakEstimate, Strategy

MIB = 2**20
KEPT_OBSERVATIONS = 64
TRUSTED_OBSERVATIONS = 5
MOST_BELIEVED = 3  # times the cold bound
# Above the highest of few observations, in units of their spread and as a share of the whole: with five, one
# in six new ones is higher than all before. From recorded decodes (tests/bench/prediction.py).
SPREAD_SHARE = 1.5
LEAST_SHARE = 0.08
QUANTILE = 0.98


@dataclass(frozen=True, slots=True)
class Margin:
    """Bytes needed as lines over live bytes: `expected` is the middle, `upper` the bound plans are made with.

    The ratios hold workspace and fragmentation, the constants what lies outside torch.
    """

    expected_ratio: float
    upper_ratio: float
    expected_constant_bytes: int
    upper_constant_bytes: int

    def apply(self, live_bytes: int, *, tentative: bool = False) -> PeakEstimate:
        """Live, expected and upper bytes."""
        expected = round(live_bytes * self.expected_ratio) + self.expected_constant_bytes
        upper = round(live_bytes * self.upper_ratio) + self.upper_constant_bytes
        return PeakEstimate(live_bytes, min(expected, upper), upper, tentative=tentative)


# Before anything is learned. CPU: resident-set growth of real decodes was 1.0 to 1.4 x live bytes
# (convolution scratch). CUDA: cuDNN workspace and fragmentation are reported as 1.0 to 3 x; the first
# out-of-memory or success corrects it.
COLD_MARGINS = {
    "cpu": Margin(1.15, 1.4, 4 * MIB, 8 * MIB),
    "cuda": Margin(1.25, 1.6, 128 * MIB, 256 * MIB),
}
# What the constant never falls below once learned: pages and blocks are handed out whole.
LEAST_CONSTANT_BYTES = {"cpu": 8 * MIB, "cuda": 32 * MIB}


@dataclass(frozen=True, slots=True)
class Observation:
    """One finished decode: bytes of its tensors as predicted, and the three parts beyond them."""

    live_bytes: int
    workspace_bytes: int
    fragmentation_bytes: int
    outside_bytes: int

    @property
    def ratio(self) -> float:
        """What grows with the decode, over its live bytes."""
        return (self.live_bytes + self.workspace_bytes + self.fragmentation_bytes) / self.live_bytes


@dataclass(slots=True)
class Learned:
    """Observations, newest last, and the highest ratio known to be too little."""

    observations: list[Observation] = field(default_factory=list)
    too_little: float = 0.0
    too_little_age: int = 0  # observations since the out-of-memory


class Residuals:
    """Learned margins of one device and build. Not thread-safe: one decoder owns it."""

    def __init__(self, device: str = "cpu") -> None:
        self.device = device
        self._learned: dict[str, Learned] = {}
        self._margins: dict[str, Margin] = {}
        self._told: dict[str, bool] = {}  # which margins are tentative, where a summary is all there is

    @property
    def on_host(self) -> bool:
        """Whether the device's memory is the host's."""
        return self.device.startswith("cpu")

    @property
    def _kind(self) -> str:
        return "cpu" if self.on_host else "cuda"

    def estimate(self, family: str, dtype: str, strategy: Strategy, live_bytes: int) -> PeakEstimate:
        """Expected and upper bytes for a decode whose tensors alone take `live_bytes`."""
        key = _key(family, dtype, strategy)
        return self._margin(key).apply(live_bytes, tentative=self._is_tentative(key))

    def _is_tentative(self, key: str) -> bool:
        """Whether few decodes are behind a margin, and no failure."""
        if key in self._told:
            return self._told[key]
        learned = self._learned.get(key)
        if learned is None:
            return True
        return len(learned.observations) < TRUSTED_OBSERVATIONS and not _is_fresh(learned)

    def _margin(self, key: str) -> Margin:
        if key not in self._margins and key in self._learned:
            self._margins[key] = _fit(self._learned[key], self._kind)
        return self._margins.get(key, COLD_MARGINS[self._kind])

    def observe(
        self, family: str, dtype: str, strategy: Strategy, *, live_bytes: int, measured: MeasuredPeak
    ) -> None:
        """Learn from a decode that finished and whose tensors took `live_bytes`."""
        learned = self._learned.setdefault(_key(family, dtype, strategy), Learned())
        workspace = max(0, measured.allocated_bytes - live_bytes)
        seen = Observation(live_bytes, workspace, measured.fragmentation_bytes, measured.outside_bytes)
        learned.observations = [*learned.observations, seen][-KEPT_OBSERVATIONS:]
        # Any strategy's success ages every failure: a strategy that is no longer chosen could not clear
        # itself.
        for each in self._learned.values():
            each.too_little_age += 1
        self._margins.clear()

    def out_of_memory(
        self, family: str, dtype: str, strategy: Strategy, *, live_bytes: int, free_bytes: int
    ) -> None:
        """Learn that `free_bytes` were not enough: a lower bound until later successes, of any strategy, age
        it.
        """
        learned = self._learned.setdefault(_key(family, dtype, strategy), Learned())
        # What failed with plenty free failed for another reason, and must not count as needing all of that.
        most = MOST_BELIEVED * COLD_MARGINS[self._kind].upper_ratio
        learned.too_little = max(learned.too_little, min(free_bytes / live_bytes, most))
        learned.too_little_age = 0
        self._margins.clear()

    def summary(self) -> dict[str, Any]:
        """What each kind of decode is known to need, as JSON values; the inverse is `from_summary`."""
        return {key: self._summary_of(key, learned) for key, learned in self._learned.items()}

    def _summary_of(self, key: str, learned: Learned) -> dict[str, Any]:
        seen = learned.observations

        def middle(values: Sequence[float]) -> float:
            return round(median(values), 4) if values else 0.0

        return {
            "observations": len(seen),
            "workspace_ratio": middle([each.workspace_bytes / each.live_bytes for each in seen]),
            "fragmentation_ratio": middle([each.fragmentation_bytes / each.live_bytes for each in seen]),
            "outside_bytes": round(middle([each.outside_bytes for each in seen])),
            "too_little_ratio": round(learned.too_little, 4) if _is_fresh(learned) else None,
            **asdict(self._margin(key)),
        }

    @classmethod
    def from_summary(cls, device: str, summary: Mapping[str, Any]) -> Self:
        """Margins as the ones summarised, for a process that only plans."""
        residuals = cls(device)
        for key, each in summary.items():
            residuals._margins[key] = Margin(
                each["expected_ratio"],
                each["upper_ratio"],
                each["expected_constant_bytes"],
                each["upper_constant_bytes"],
            )
            few = each["observations"] < TRUSTED_OBSERVATIONS
            residuals._told[key] = few and each["too_little_ratio"] is None
        return residuals

    def to_json(self) -> dict[str, Any]:
        """All that was learned, as JSON values."""
        return {
            key: {
                "observations": [list(asdict(one).values()) for one in each.observations],
                "too_little": each.too_little,
                "age": each.too_little_age,
            }
            for key, each in self._learned.items()
        }

    @classmethod
    def from_json(cls, device: str, data: Mapping[str, Any]) -> Self:
        """The inverse of `to_json`."""
        residuals = cls(device)
        for key, each in data.items():
            seen = [Observation(*values) for values in each["observations"]]
            residuals._learned[key] = Learned(seen, each["too_little"], each["age"])
        return residuals


def _key(family: str, dtype: str, strategy: Strategy) -> str:
    return f"{family}/{dtype}/{strategy}"


def _is_fresh(learned: Learned) -> bool:
    """Whether an out-of-memory still counts."""
    return learned.too_little > 0 and learned.too_little_age < TRUSTED_OBSERVATIONS


def _fit(learned: Learned, kind: str) -> Margin:
    """Median and a high quantile of what was seen; with few observations the cold margin still counts."""
    cold, seen = COLD_MARGINS[kind], learned.observations
    trust = min(1.0, len(seen) / TRUSTED_OBSERVATIONS)
    ratio, upper = cold.expected_ratio, cold.upper_ratio
    constant, upper_constant = cold.expected_constant_bytes, cold.upper_constant_bytes
    if seen:
        ratios, outside = [each.ratio for each in seen], [each.outside_bytes for each in seen]
        ratio, constant = median(ratios), round(median(outside))
        bound = _bound(ratios)
        upper = trust * bound + (1 - trust) * max(cold.upper_ratio, bound)
        least = LEAST_CONSTANT_BYTES[kind]
        outside_bound = max(least, round(quantile(outside, QUANTILE)))
        upper_constant = round(
            trust * outside_bound + (1 - trust) * max(cold.upper_constant_bytes, outside_bound)
        )
    if _is_fresh(learned):
        upper = max(upper, learned.too_little * 1.1)
        ratio = max(ratio, learned.too_little)  # trying the same again would only fail again
    return Margin(min(ratio, upper), upper, min(constant, upper_constant), upper_constant)


def _bound(ratios: Sequence[float]) -> float:
    """A ratio that hardly any later decode exceeds: a high quantile, and on top a part of the spread that
    shrinks as more is seen.
    """
    high, middle = quantile(ratios, QUANTILE), median(ratios)
    few = math.sqrt(TRUSTED_OBSERVATIONS / len(ratios))
    return high + max(LEAST_SHARE * high, SPREAD_SHARE * (high - middle)) * max(0.5, min(1.0, few))


def quantile(values: Sequence[float], share: float) -> float:
    """The value below which that share of them lies, on the line between neighbours."""
    ordered = sorted(values)
    place = share * (len(ordered) - 1)
    low = int(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (place - low)
