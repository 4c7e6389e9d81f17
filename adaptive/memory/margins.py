"""Learned margins: the memory a decode takes beyond its live tensors, learned from earlier decodes.

Owns the choice of earlier decodes that predict the next one on a device, and the JSON of what was learned. It
does not know torch, how live bytes are traced, how memory is measured, or the arithmetic of margins (see
`adaptive.memory.margin_fit`).

The memory beyond live tensors has three parts (`MeasuredPeak`). Workspace and fragmentation grow with the
decode and are learned as shares of its live bytes. Memory outside torch does not grow with the decode and is
learned in bytes. In a service's process it includes the video encoder's memory; learned as a share of small
decodes, it gave absurd predictions for large ones.

The most similar decodes count most:

1. The same decode (strategy, chunking, live bytes) takes what it took before.
2. Decodes with the same frame count and chunk size run convolutions of the same lengths, for which libraries
   choose the same algorithms.
3. Decodes of the same family by the same strategy.
4. Decodes of the same family by other strategies.
5. The cold margin.

A failure raises the margin of decodes like it, and of strategies that have no observations yet. After a
failure, the planner makes no optimistic try in that family until enough decodes have finished.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields, replace
from statistics import median
from threading import RLock
from typing import Any, Self

from adaptive.memory.margin_fit import (
    CHUNKING_FIT,
    COLD_MARGINS,
    FAILED_RATIO_CAP,
    SAME_DECODE_FAILURE_LIFETIME,
    STRATEGY_FIT,
    Failure,
    Margin,
    Observation,
    StrategyHistory,
    estimate_repeat,
    fit_margin,
    highest_failed_ratio,
    margin_from_family,
)
from adaptive.types import Chunking, MeasuredPeak, PeakEstimate, Strategy

KEPT_OBSERVATIONS = 64
KEPT_FAILURES = 16
SUMMARY_ENTRIES = 16  # a summary holds this many chunkings and decodes of each strategy, the newest ones
_NO_HISTORY = StrategyHistory()
_MARGIN = [each.name for each in fields(Margin)]


class LearnedMargins:
    """Learned margins of one device and build. Decodes of several threads may share it."""

    def __init__(self, device: str = "cpu") -> None:
        self.device = device
        self._learned: dict[str, StrategyHistory] = {}
        self._margins: dict[tuple[str, Chunking | None], Margin] = {}
        self._decodes: dict[tuple[str, Chunking, int], PeakEstimate | None] = {}
        self._lock = RLock()

    @property
    def on_host(self) -> bool:
        """Whether the device uses host memory."""
        return self.device.startswith("cpu")

    @property
    def _kind(self) -> str:
        return "cpu" if self.on_host else "cuda"

    def estimate(
        self,
        family: str,
        dtype: str,
        strategy: Strategy,
        live_bytes: int,
        chunking: Chunking | None = None,
    ) -> PeakEstimate:
        """Expected and upper bytes of a decode whose tensors take `live_bytes`.

        Without a `chunking`, only decodes of the same strategy and family are compared.
        """
        key = _key(family, dtype, strategy)
        with self._lock:
            same = None if chunking is None else self._decode(key, chunking, live_bytes)
            return same or self._margin(key, chunking).apply(live_bytes)

    def _decode(self, key: str, chunking: Chunking, live_bytes: int) -> PeakEstimate | None:
        """Estimate from earlier runs of the same decode, failed ones included; None where there are none."""
        place = key, chunking, live_bytes
        if place not in self._decodes and key in self._learned:
            learned = self._learned[key]
            seen = learned.matching(chunking, live_bytes)
            failed = [f for f in learned.failures if (f.chunking, f.live_bytes) == (chunking, live_bytes)]
            least = round(live_bytes * highest_failed_ratio(failed, SAME_DECODE_FAILURE_LIFETIME))
            known = estimate_repeat(seen, self._kind) if seen else None
            if least:
                known = known or self._margin(key, chunking).apply(live_bytes)
                expected = max(known.expected_bytes, least)
                known = PeakEstimate(live_bytes, expected, max(known.upper_bytes, round(1.1 * expected)))
            self._decodes[place] = known
        return self._decodes.get(place)

    def _margin(self, key: str, chunking: Chunking | None) -> Margin:
        place = key, chunking
        if place not in self._margins:
            self._margins[place] = self._fit(key, chunking)
        return self._margins[place]

    def _fit(self, key: str, chunking: Chunking | None) -> Margin:
        learned = self._learned.get(key, _NO_HISTORY)
        seen, alike = learned.observations, learned.matching(chunking)
        kind = key.rpartition("/")[0]
        others = [each for at, each in self._learned.items() if at != key and at.rpartition("/")[0] == kind]
        family = [*seen, *(one for each in others for one in each.observations)]
        outside = [each.outside_bytes for each in family]
        cold = margin_from_family(COLD_MARGINS[self._kind], family, self._kind)
        margin = cold
        if len(alike) < len(seen):
            margin = fit_margin(seen, cold, self._kind, STRATEGY_FIT, outside_bytes=outside)
            margin = replace(margin, hoped_ratio=cold.hoped_ratio)  # this chunking was never tried
        margin = fit_margin(alike, margin, self._kind, CHUNKING_FIT, outside_bytes=outside)
        of_family = [one for each in [learned, *others] for one in each.failures]
        failures = learned.failures if seen else of_family
        if alike:
            failures = [each for each in failures if each.chunking == chunking]
        margin = margin.raised_above(highest_failed_ratio(failures))
        # After one failure in the family, no optimistic try until the failure has aged out.
        return replace(margin, hoped_ratio=None) if of_family else margin

    def observe(
        self,
        family: str,
        dtype: str,
        strategy: Strategy,
        *,
        live_bytes: int,
        measured: MeasuredPeak,
        chunking: Chunking | None = None,
    ) -> None:
        """Learn from a decode that finished and whose tensors took `live_bytes`."""
        workspace = max(0, measured.allocated_bytes - live_bytes)
        parts = workspace, measured.fragmentation_bytes, measured.outside_bytes
        with self._lock:
            self._add(_key(family, dtype, strategy), Observation(live_bytes, *parts, chunking))

    def _add(self, key: str, seen: Observation) -> None:
        learned = self._learned.setdefault(key, StrategyHistory())
        learned.observations = [*learned.observations, seen][-KEPT_OBSERVATIONS:]
        # A success of any strategy ages every failure. Otherwise the failure of a strategy that is no longer
        # chosen would never expire.
        for each in self._learned.values():
            for failure in each.failures:
                failure.age += 1
            each.failures = [
                failure for failure in each.failures if failure.age < SAME_DECODE_FAILURE_LIFETIME
            ]
        self._clear_fits()

    def out_of_memory(
        self,
        family: str,
        dtype: str,
        strategy: Strategy,
        *,
        live_bytes: int,
        free_bytes: int,
        chunking: Chunking | None = None,
    ) -> None:
        """Learn that a decode ran out of memory with `free_bytes` free.

        The number is a lower bound until enough later decodes, of any strategy, have finished.
        """
        # A decode that failed with plenty of memory free failed for another reason, so its ratio is capped.
        most = FAILED_RATIO_CAP * COLD_MARGINS[self._kind].upper_ratio
        failure = Failure(live_bytes, min(free_bytes / live_bytes, most), chunking=chunking)
        with self._lock:
            learned = self._learned.setdefault(_key(family, dtype, strategy), StrategyHistory())
            learned.failures = [*learned.failures, failure][-KEPT_FAILURES:]
            self._clear_fits()

    def _clear_fits(self) -> None:
        self._margins.clear()
        self._decodes.clear()

    def summary(self) -> dict[str, Any]:
        """Margins of each family, dtype and strategy as JSON values; the inverse is `from_summary`.

        A strategy without observations is included where its family has other strategies' observations.
        """
        with self._lock:
            kinds = dict.fromkeys(key.rpartition("/")[0] for key in self._learned)
            keys = [*self._learned, *(f"{kind}/{strategy}" for kind in kinds for strategy in Strategy)]
            return {
                key: self._summary_of(key, self._learned.get(key, _NO_HISTORY)) for key in dict.fromkeys(keys)
            }

    def _summary_of(self, key: str, learned: StrategyHistory) -> dict[str, Any]:
        seen = learned.observations

        def middle(values: Sequence[float]) -> float:
            return round(median(values), 4) if values else 0.0

        return {
            "observations": len(seen),
            "workspace_ratio": middle([each.workspace_bytes / each.live_bytes for each in seen]),
            "fragmentation_ratio": middle([each.fragmentation_bytes / each.live_bytes for each in seen]),
            "outside_bytes": round(middle([each.outside_bytes for each in seen])),
            "too_little_ratio": round(highest_failed_ratio(learned.failures), 4) or None,
            **asdict(self._margin(key, None)),
            # More specific than the strategy's margin: margins by chunking, and estimates of single decodes.
            "chunkings": {
                _name(c): list(asdict(self._margin(key, c)).values())
                for c in learned.chunkings[-SUMMARY_ENTRIES:]
            },
            "decodes": {
                f"{_name(c)}/{live_bytes}": [known.expected_bytes, known.upper_bytes]
                for c, live_bytes in learned.tried[-SUMMARY_ENTRIES:]
                if (known := self._decode(key, c, live_bytes)) is not None
            },
        }

    @staticmethod
    def from_summary(device: str, summary: Mapping[str, Any]) -> "LearnedMargins":
        """Margins that predict as the summarized ones do, for a process that only plans."""
        return _SummarizedMargins(device, summary)

    def to_json(self) -> dict[str, Any]:
        """All observations and failures, as JSON values."""
        return {
            key: {
                "observations": [list(asdict(one).values()) for one in each.observations],
                "failures": [list(asdict(one).values()) for one in each.failures],
            }
            for key, each in self._learned.items()
        }

    @classmethod
    def from_json(cls, device: str, data: Mapping[str, Any]) -> Self:
        """The inverse of `to_json`."""
        residuals = cls(device)
        for key, each in data.items():
            residuals._learned[key] = StrategyHistory(
                [
                    Observation(live, work, holes, outside, _chunking(at))
                    for live, work, holes, outside, at in each["observations"]
                ],
                [Failure(live, ratio, age, _chunking(at)) for live, ratio, age, at in each["failures"]],
            )
        return residuals


class _SummarizedMargins(LearnedMargins):
    """Margins read from a summary without fitting: the service makes one for every request it plans."""

    def __init__(self, device: str, summary: Mapping[str, Any]) -> None:
        super().__init__(device)
        self._summary = summary

    def estimate(
        self,
        family: str,
        dtype: str,
        strategy: Strategy,
        live_bytes: int,
        chunking: Chunking | None = None,
    ) -> PeakEstimate:
        key = _key(family, dtype, strategy)
        entry = self._summary.get(key)
        if entry is not None and chunking is not None and "chunkings" in entry:
            name = _name(chunking)
            same = entry["decodes"].get(f"{name}/{live_bytes}")
            if same is not None:
                return PeakEstimate(live_bytes, *same)
            alike = entry["chunkings"].get(name)
            if alike is not None:
                return Margin(*alike).apply(live_bytes)
        return self._margin(key, None).apply(live_bytes)

    def _fit(self, key: str, chunking: Chunking | None) -> Margin:  # noqa: ARG002 - `estimate` uses it
        entry = self._summary.get(key)
        if entry is None:
            return COLD_MARGINS[self._kind]
        return Margin(**{name: entry[name] for name in _MARGIN if name in entry})


def _name(chunking: Chunking) -> str:
    return f"{chunking.latent_frames}/{chunking.frames_per_chunk}"


def _key(family: str, dtype: str, strategy: Strategy) -> str:
    return f"{family}/{dtype}/{strategy}"


def _chunking(at: Mapping[str, int] | None) -> Chunking | None:
    return None if at is None else Chunking(**at)
