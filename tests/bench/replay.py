"""Replays recorded decodes: the outcome of a policy's plan, from the known needs of every rung.

Owns the recorded cases, the real planner with its learned costs, policies that do not read memory, and random
draws.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import median
from typing import Any

from recordings import LARGE, RECORDINGS, REPEATS, Row, load

from adaptive.errors import DoesNotFit
from adaptive.memory.margins import LearnedMargins
from adaptive.memory.speed import Speeds
from adaptive.planning.fallback import FallbackOrder
from adaptive.planning.planner import PlanInputs, Policy, plan_decode
from adaptive.types import Cut, LatentShape, MeasuredPeak, MemoryReading, PeakEstimate, VaeTraits

POLICY = Policy(reserve_bytes=0)
RECORDED = {"Large": LARGE, "Tiny": RECORDINGS}


@dataclass(frozen=True)
class Case:
    """One decode with every rung's real need and time. It also replaces its `MemoryProfile`."""

    rows: dict[int, Row]
    traits: VaeTraits
    dtype: str = "float32"
    can_stream: bool = True
    tiled: Any = None

    @property
    def config_digest(self) -> str:
        """The model's name: speeds are learned by it."""
        return next(iter(self.rows.values())).model

    @property
    def shape(self) -> LatentShape:
        """Latents."""
        return LatentShape(*next(iter(self.rows.values())).shape)

    def estimate_cut(self, shape: LatentShape, cut: Cut, residuals: LearnedMargins | None) -> PeakEstimate:
        """As a profile's: recorded live bytes with learned margins."""
        assert residuals is not None
        live = self.rows[cut.frames_per_chunk].live_bytes
        known_by = self.traits.family, self.dtype, cut.strategy(shape.frames)
        return residuals.estimate(*known_by, live, cut.chunking(shape.frames))


@dataclass
class Outcome:
    """What became of one decode. `rungs_below`: passes down from the best rung that really fitted."""

    succeeded: bool
    seconds: float
    best_seconds: float
    retries: int
    rungs_below: int

    @property
    def ratio(self) -> float:
        """Time over the best feasible one."""
        return self.seconds / self.best_seconds


@dataclass
class Planner:
    """The real planner, with what it has learned."""

    residuals: LearnedMargins = field(default_factory=lambda: LearnedMargins("cpu"))
    speeds: Speeds = field(default_factory=Speeds)
    may_fail: bool = True

    def decode(self, case: Case, budget_bytes: int) -> Outcome:
        """Plan, run, after an out-of-memory go on as `AdaptiveDecoder` does, learn."""
        chosen = self._plan(case, budget_bytes)
        cut: Cut | None = Cut(chosen)
        spent, failures, tried = 0.0, list[Cut](), set[Cut]()
        while cut is not None:
            row = case.rows[cut.frames_per_chunk]
            if row.needed_bytes <= budget_bytes:
                if not failures:
                    self._learn(case, row)
                return _outcome(case, budget_bytes, spent + row.seconds, len(failures), chosen)
            spent += row.seconds / -(-case.shape.frames // cut.frames_per_chunk)  # the chunk that failed
            again = cut in tried
            self.residuals.out_of_memory(
                case.traits.family,
                "float32",
                cut.strategy(case.shape.frames),
                live_bytes=row.live_bytes,
                free_bytes=budget_bytes,
                chunking=cut.chunking(case.shape.frames),
            )
            failures.append(cut)
            tried.add(cut)
            cut = self._after(case, budget_bytes, cut, tried, again=again)
        return _outcome(case, budget_bytes, spent, len(failures), chosen, succeeded=False)

    def _after(
        self, case: Case, budget_bytes: int, failed: Cut, tried: set[Cut], *, again: bool
    ) -> Cut | None:
        profile: Any = case
        ladder = FallbackOrder(profile, case.shape, POLICY, self._inputs(case))
        after = ladder.next_cut(failed, lambda cut: cut not in tried, _reading(budget_bytes), 0)
        if after is None:
            after = ladder.smallest_untried(tried, None if again else budget_bytes)
        return after or (None if again else failed)

    def _inputs(self, case: Case) -> PlanInputs:
        profile: Any = case
        speed = self.speeds.model(profile)
        return PlanInputs(residuals=self.residuals, speed=speed, may_fail=self.may_fail)

    def _plan(self, case: Case, budget_bytes: int) -> int:
        profile: Any = case
        inputs = self._inputs(case)
        try:
            plan = plan_decode(profile, case.shape, _reading(budget_bytes), POLICY, inputs)
        except DoesNotFit:  # the service waits first; nothing comes free here
            return FallbackOrder(profile, case.shape, POLICY, inputs).smallest().frames_per_chunk
        return plan.frames_per_chunk

    def _learn(self, case: Case, row: Row) -> None:
        cut = Cut(row.frames_per_chunk)
        profile: Any = case
        self.speeds.observe(profile, case.shape, row.frames_per_chunk, row.seconds)
        measured = MeasuredPeak(row.allocated_bytes, row.fragmentation_bytes, row.outside_bytes)
        self.residuals.observe(
            case.traits.family,
            "float32",
            cut.strategy(case.shape.frames),
            live_bytes=row.live_bytes,
            measured=measured,
            chunking=cut.chunking(case.shape.frames),
        )


def _reading(free_bytes: int) -> MemoryReading:
    return MemoryReading("cpu", free_bytes, free_bytes, 0, 0, 0, "replay")


def _outcome(
    case: Case, budget_bytes: int, seconds: float, retries: int, chosen: int, *, succeeded: bool = True
) -> Outcome:
    feasible = [row for row in case.rows.values() if row.needed_bytes <= budget_bytes]
    best = min(feasible, key=lambda row: row.seconds)
    ladder = sorted(case.rows, reverse=True)
    below = max(0, ladder.index(chosen) - ladder.index(best.frames_per_chunk))
    return Outcome(succeeded, seconds, best.seconds, retries, below)


def always(size_of: Callable[[Case], int]) -> Callable[[Case, int], Outcome]:
    """A policy that looks at no memory, and loses what does not fit."""

    def decode(case: Case, budget_bytes: int) -> Outcome:
        row = case.rows[size_of(case)]
        fits = row.needed_bytes <= budget_bytes
        return _outcome(case, budget_bytes, row.seconds, 0, row.frames_per_chunk, succeeded=fits)

    return decode


def cases(recorded: Path = LARGE) -> list[Case]:
    """All recorded decodes of which every rung is there."""
    groups: dict[tuple[str, Any], dict[int, Row]] = {}
    for row in load(recorded):
        groups.setdefault((row.model, row.shape), {})[row.frames_per_chunk] = row
    whole = []
    for (_, shape), rows in groups.items():
        wanted = {-(-shape[2] // chunks) for chunks in range(1, shape[2] + 1)}
        if wanted == set(rows):
            whole.append(Case(rows, _traits(rows[1])))
    return whole


def _traits(row: Row) -> VaeTraits:
    return VaeTraits(row.family, row.model, row.shape[1], 8, 1, False, True, False)


def draws(
    found: Sequence[Case], count: int, seed: int, factors: Sequence[float] | None = None
) -> Iterator[tuple[Case, int]]:
    """Random decodes with random budgets in which at least the smallest rung really fits.

    With `factors` (see `repeats`) no decode needs exactly again what it needed before.
    """
    draw = random.Random(seed)
    for _ in range(count):
        case = draw.choice(found)
        case = case if factors is None else varied(case, factors, draw)
        needs = sorted(row.needed_bytes for row in case.rows.values())
        yield case, round(draw.uniform(needs[0], 1.3 * needs[-1]))


def repeats() -> list[float]:
    """How far a decode's need lay from the median of its repeats, as factors; of all models together."""
    groups: dict[tuple[Any, ...], list[int]] = {}
    for row in load(REPEATS):
        groups.setdefault((row.model, row.shape, row.frames_per_chunk), []).append(row.needed_bytes)
    return [need / median(needs) for needs in groups.values() for need in needs]


def varied(case: Case, factors: Sequence[float], draw: random.Random) -> Case:
    """The same decode once more: each rung needs what it did, times one of the factors."""

    def again(row: Row) -> Row:
        factor = draw.choice(factors)
        return replace(
            row, allocated_bytes=max(1, row.allocated_bytes + round((factor - 1) * row.needed_bytes))
        )

    return replace(case, rows={size: again(row) for size, row in case.rows.items()})
