"""What denoising takes on one device: memory beyond the traced tensors, and seconds a step.

Owns the observations of each model, and the margins and speeds fitted to them (see
`adaptive.memory.margin_fit`). It does not know torch, how tensors are traced, or where weights are.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from statistics import median
from threading import RLock
from typing import Any, Self

from adaptive.memory.margin_fit import (
    LEAST_CONSTANT_BYTES,
    STRATEGY_FIT,
    Failure,
    Margin,
    Observation,
    fit_margin,
    highest_failed_ratio,
)
from adaptive.types import MeasuredPeak

KEPT = 32  # newest observations of each model
# Before the first run: workspace of attention and matrix kernels and fragmentation, above traced tensors.
COLD_RATIO = 1.3
_MARGIN = [each.name for each in fields(Margin)]


@dataclass(frozen=True, slots=True)
class StepTime:
    """Seconds of one step that computed so many latent positions, both branches of guidance counted."""

    positions: int
    seconds: float


class DenoiseCosts:
    """Margins by model and dtype, and seconds a step by model, dtype and placement. Thread-safe."""

    def __init__(self, kind: str = "cuda") -> None:
        self._kind = "cpu" if kind.startswith("cpu") else "cuda"
        self._lock = RLock()
        self._seen: dict[str, list[Observation]] = {}
        self._failures: dict[str, list[Failure]] = {}
        self._times: dict[str, list[StepTime]] = {}

    def observe(self, key: str, live_bytes: int, measured: MeasuredPeak) -> None:
        """Learn from a denoise that ended and whose tensors take `live_bytes` by their trace."""
        workspace = max(0, measured.allocated_bytes - live_bytes)
        seen = Observation(live_bytes, workspace, measured.fragmentation_bytes, measured.outside_bytes)
        with self._lock:
            self._seen[key] = [*self._seen.get(key, ()), seen][-KEPT:]
            for failure in self._failures.get(key, ()):
                failure.age += 1

    def out_of_memory(self, key: str, live_bytes: int, free_bytes: int) -> None:
        """Learn that a denoise did not fit in `free_bytes`."""
        failure = Failure(live_bytes, min(free_bytes / live_bytes, 3 * COLD_RATIO))
        with self._lock:
            self._failures[key] = [*self._failures.get(key, ()), failure][-KEPT:]

    def observe_step(self, key: str, positions: int, seconds: float) -> None:
        """Learn how long a step took."""
        if seconds > 0:
            with self._lock:
                self._times[key] = [*self._times.get(key, ()), StepTime(positions, seconds)][-KEPT:]

    def upper_bytes(self, key: str, live_bytes: int) -> int:
        """The bytes that a denoise hardly ever exceeds."""
        with self._lock:
            return self._margin(key).apply(live_bytes).upper_bytes

    def step_seconds(self, key: str, positions: int) -> float | None:
        """Seconds of a step: those of the nearest size that was timed, in proportion; None before any."""
        with self._lock:
            times = self._times.get(key)
            if not times:
                return None
            nearest = min({each.positions for each in times}, key=lambda known: _distance(known, positions))
            seconds = median(each.seconds for each in times if each.positions == nearest)
            return seconds * positions / nearest

    def _margin(self, key: str) -> Margin:
        cold = Margin(COLD_RATIO, COLD_RATIO, 0, 0)
        seen: Sequence[Observation] = self._seen.get(key, ())
        constant = LEAST_CONSTANT_BYTES[self._kind]
        outside = [max(0, each.outside_bytes - constant) for each in seen]
        margin = fit_margin(seen, cold, self._kind, STRATEGY_FIT, outside_bytes=outside)
        return margin.raised_above(highest_failed_ratio(self._failures.get(key, ())))

    def summary(self) -> dict[str, Any]:
        """Fitted margins and the median times as JSON values; the inverse is `from_summary`."""
        with self._lock:
            keys = dict.fromkeys([*self._seen, *self._failures])
            seconds = {}
            for key, times in self._times.items():
                sizes = sorted({each.positions for each in times})
                seconds[key] = [[size, self.step_seconds(key, size)] for size in sizes]
            return {"margins": {key: asdict(self._margin(key)) for key in keys}, "seconds": seconds}

    @classmethod
    def from_summary(cls, kind: str, summary: Mapping[str, Any]) -> "DenoiseCosts":
        """Costs that predict as the summarized ones do, for a process that only plans."""
        costs = _SummarizedCosts(kind, summary.get("margins") or {})
        for key, known in (summary.get("seconds") or {}).items():
            costs._times[key] = [StepTime(int(size), float(seconds)) for size, seconds in known]
        return costs

    def to_json(self) -> dict[str, Any]:
        """All observations, as JSON values."""
        with self._lock:
            return {
                "observations": {key: [_numbers(each) for each in seen] for key, seen in self._seen.items()},
                "failures": {key: [_numbers(each) for each in many] for key, many in self._failures.items()},
                "times": {key: [_numbers(each) for each in many] for key, many in self._times.items()},
            }

    @classmethod
    def from_json(cls, kind: str, data: Mapping[str, Any]) -> Self:
        """The inverse of `to_json`."""
        costs = cls(kind)
        for key, seen in (data.get("observations") or {}).items():
            costs._seen[key] = [Observation(*each) for each in seen]
        for key, failures in (data.get("failures") or {}).items():
            costs._failures[key] = [Failure(*each) for each in failures]
        for key, times in (data.get("times") or {}).items():
            costs._times[key] = [StepTime(*each) for each in times]
        return costs


class _SummarizedCosts(DenoiseCosts):
    """Costs read from a summary without fitting."""

    def __init__(self, kind: str, margins: Mapping[str, Any]) -> None:
        super().__init__(kind)
        self._margins = margins

    def _margin(self, key: str) -> Margin:
        known = self._margins.get(key)
        if known is None:
            return Margin(COLD_RATIO, COLD_RATIO, 0, 0)
        return Margin(**{name: known[name] for name in _MARGIN if name in known})


def _numbers(value: Observation | Failure | StepTime) -> list[float]:
    """The fields of an observation, but for those that only decodes have."""
    return [number for number in asdict(value).values() if number is not None]


def _distance(known: int, asked: int) -> float:
    return max(known, asked) / max(1, min(known, asked))
