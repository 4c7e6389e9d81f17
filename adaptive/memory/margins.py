"""What live tensors do not tell: the memory a decode takes beyond them, learned from finished decodes.

Owns: which earlier decodes tell of the next one on a device, and what was learned, as JSON. Must not know:
torch, how live bytes are traced, how anything is measured, the arithmetic of margins
(`adaptive.memory.margin_fit`).

What is beyond has three parts (`MeasuredPeak`). Workspace and fragmentation grow with the decode and are
learned as shares of its live bytes; what lies outside torch does not, and is learned in bytes: in a service's
process it is also what the video encoder holds, and taken as a share it made small decodes teach absurd ones.

The nearest decodes tell most. The very same one (strategy, chunking, live bytes) takes what it took. One with
as many frames, cut up in the same way, makes convolutions of the same lengths, for which libraries choose the
same algorithms. Then come the family's by the same strategy, then its others, then what is known before
anything is learned. A failure tells of its own kind, and of strategies that nothing else is known of; after
one, nothing of its family is tried in hope until enough decodes have finished.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields, replace
from statistics import median
from typing import Any, Self

from adaptive.memory.margin_fit import (
    COLD_MARGINS,
    FRESH_SAME,
    MOST_BELIEVED,
    OF_CHUNKING,
    OF_STRATEGY,
    Failure,
    Learned,
    Margin,
    Observation,
    again,
    as_others,
    fitted,
    too_little,
)
from adaptive.types import Chunking, MeasuredPeak, PeakEstimate, Strategy

KEPT_OBSERVATIONS = 64
KEPT_FAILURES = 16
TOLD = 16  # chunkings, and decodes, of each strategy in a summary: the last ones
_NONE = Learned()
_MARGIN = [each.name for each in fields(Margin)]


class LearnedMargins:
    """Learned margins of one device and build. Not thread-safe: one decoder owns it."""

    def __init__(self, device: str = "cpu") -> None:
        self.device = device
        self._learned: dict[str, Learned] = {}
        self._margins: dict[tuple[str, Chunking | None], Margin] = {}
        self._decodes: dict[tuple[str, Chunking, int], PeakEstimate | None] = {}

    @property
    def on_host(self) -> bool:
        """Whether the device's memory is the host's."""
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
        """Expected and upper bytes for a decode whose tensors alone take `live_bytes`."""
        key = _key(family, dtype, strategy)
        same = None if chunking is None else self._decode(key, chunking, live_bytes)
        return same or self._margin(key, chunking).apply(live_bytes)

    def _decode(self, key: str, chunking: Chunking, live_bytes: int) -> PeakEstimate | None:
        """What the very same decode took, or was too little for it; None where it was never tried."""
        place = key, chunking, live_bytes
        if place not in self._decodes and key in self._learned:
            learned = self._learned[key]
            seen = learned.of(chunking, live_bytes)
            failed = [f for f in learned.failures if (f.chunking, f.live_bytes) == (chunking, live_bytes)]
            least = round(live_bytes * too_little(failed, FRESH_SAME))
            known = again(seen, self._kind) if seen else None
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
        learned = self._learned.get(key, _NONE)
        seen, alike = learned.observations, learned.of(chunking)
        kind = key.rpartition("/")[0]
        others = [each for at, each in self._learned.items() if at != key and at.rpartition("/")[0] == kind]
        family = [*seen, *(one for each in others for one in each.observations)]
        outside = [each.outside_bytes for each in family]
        cold = as_others(COLD_MARGINS[self._kind], family, self._kind)
        margin = cold
        if len(alike) < len(seen):
            margin = fitted(seen, cold, self._kind, OF_STRATEGY, outside_bytes=outside)
            margin = replace(margin, hoped_ratio=cold.hoped_ratio)  # this chunking was never tried
        margin = fitted(alike, margin, self._kind, OF_CHUNKING, outside_bytes=outside)
        of_family = [one for each in [learned, *others] for one in each.failures]
        failures = learned.failures if seen else of_family
        if alike:
            failures = [each for each in failures if each.chunking == chunking]
        margin = margin.lifted(too_little(failures))
        # One failure in a family is enough: for a while nothing of it is tried in hope.
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
        learned = self._learned.setdefault(_key(family, dtype, strategy), Learned())
        workspace = max(0, measured.allocated_bytes - live_bytes)
        parts = workspace, measured.fragmentation_bytes, measured.outside_bytes
        seen = Observation(live_bytes, *parts, chunking)
        learned.observations = [*learned.observations, seen][-KEPT_OBSERVATIONS:]
        # Any strategy's success ages every failure: a strategy that is no longer chosen could not clear
        # itself.
        for each in self._learned.values():
            for failure in each.failures:
                failure.age += 1
            each.failures = [failure for failure in each.failures if failure.age < FRESH_SAME]
        self._forget()

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
        """Learn that `free_bytes` were not enough: a lower bound until later successes, of any strategy, age
        it.
        """
        learned = self._learned.setdefault(_key(family, dtype, strategy), Learned())
        # What failed with plenty free failed for another reason, and must not count as needing all of that.
        most = MOST_BELIEVED * COLD_MARGINS[self._kind].upper_ratio
        failure = Failure(live_bytes, min(free_bytes / live_bytes, most), chunking=chunking)
        learned.failures = [*learned.failures, failure][-KEPT_FAILURES:]
        self._forget()

    def _forget(self) -> None:
        self._margins.clear()
        self._decodes.clear()

    def summary(self) -> dict[str, Any]:
        """What each kind of decode is known to need, as JSON values; the inverse is `from_summary`.

        Strategies of which only the family's others tell are there with no observations.
        """
        kinds = dict.fromkeys(key.rpartition("/")[0] for key in self._learned)
        keys = [*self._learned, *(f"{kind}/{strategy}" for kind in kinds for strategy in Strategy)]
        return {key: self._summary_of(key, self._learned.get(key, _NONE)) for key in dict.fromkeys(keys)}

    def _summary_of(self, key: str, learned: Learned) -> dict[str, Any]:
        seen = learned.observations

        def middle(values: Sequence[float]) -> float:
            return round(median(values), 4) if values else 0.0

        return {
            "observations": len(seen),
            "workspace_ratio": middle([each.workspace_bytes / each.live_bytes for each in seen]),
            "fragmentation_ratio": middle([each.fragmentation_bytes / each.live_bytes for each in seen]),
            "outside_bytes": round(middle([each.outside_bytes for each in seen])),
            "too_little_ratio": round(too_little(learned.failures), 4) or None,
            **asdict(self._margin(key, None)),
            # Beside the margin of all: those of one chunking, and what was tried before.
            "chunkings": {
                _name(c): list(asdict(self._margin(key, c)).values()) for c in learned.chunkings[-TOLD:]
            },
            "decodes": {
                f"{_name(c)}/{live_bytes}": [known.expected_bytes, known.upper_bytes]
                for c, live_bytes in learned.tried[-TOLD:]
                if (known := self._decode(key, c, live_bytes)) is not None
            },
        }

    @staticmethod
    def from_summary(device: str, summary: Mapping[str, Any]) -> "LearnedMargins":
        """Margins as the ones summarised, for a process that only plans."""
        return _Told(device, summary)

    def to_json(self) -> dict[str, Any]:
        """All that was learned, as JSON values."""
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
            residuals._learned[key] = Learned(
                [
                    Observation(live, work, holes, outside, _chunking(at))
                    for live, work, holes, outside, at in each["observations"]
                ],
                [Failure(live, ratio, age, _chunking(at)) for live, ratio, age, at in each["failures"]],
            )
        return residuals


class _Told(LearnedMargins):
    """What a summary says, looked up as it is: one is made for every request that is planned."""

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
        told = self._summary.get(key)
        if told is not None and chunking is not None and "chunkings" in told:
            name = _name(chunking)
            same = told["decodes"].get(f"{name}/{live_bytes}")
            if same is not None:
                return PeakEstimate(live_bytes, *same)
            alike = told["chunkings"].get(name)
            if alike is not None:
                return Margin(*alike).apply(live_bytes)
        return self._margin(key, None).apply(live_bytes)

    def _fit(self, key: str, chunking: Chunking | None) -> Margin:  # noqa: ARG002 - looked up before
        told = self._summary.get(key)
        if told is None:
            return COLD_MARGINS[self._kind]
        return Margin(**{name: told[name] for name in _MARGIN if name in told})


def _name(chunking: Chunking) -> str:
    return f"{chunking.latent_frames}/{chunking.frames_per_chunk}"


def _key(family: str, dtype: str, strategy: Strategy) -> str:
    return f"{family}/{dtype}/{strategy}"


def _chunking(at: Mapping[str, int] | None) -> Chunking | None:
    return None if at is None else Chunking(**at)
