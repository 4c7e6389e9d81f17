"""How far from the best: random decodes replayed from recordings, by the planner and by simpler policies.

    python tests/bench/regret.py

A draw is a model, a shape and a budget between what its smallest rung really took and 1.3 times what its
largest did. Every rung's real peak and seconds are known (`recordings.py`), so the outcome of any choice is,
too: a rung that needs more than the budget runs out of memory. The planner starts knowing nothing and learns
from each decode, as the service does, failures included, and goes on after an out-of-memory, which costs a
chunk and nothing else, as on a card. A policy that does not go on loses the video. In the tiny decodes what a
process takes beside tensors weighs as much as they do. Writes `results/regret-cpu.json` and `.md`.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median, quantiles
from typing import Any

from recordings import LARGE, RECORDINGS, Row, load

from adaptive.errors import DoesNotFit
from adaptive.ladder import Ladder
from adaptive.planner import PlanInputs, Policy, plan_decode
from adaptive.residuals import Residuals
from adaptive.speed import Speeds
from adaptive.types import Cut, LatentShape, MeasuredPeak, MemoryReading, PeakEstimate, VaeTraits, strategy_of

DRAWS = 300
SEEDS = range(1, 6)  # each is a machine that knows nothing at first
POLICY = Policy(reserve_bytes=0)
BOUNDS = {"failed": 0, "median": 1.05, "p95": 1.25}
OUT = Path(__file__).parent / "results"
MB = 10**6
RECORDED = {"Large": LARGE, "Tiny": RECORDINGS}


@dataclass(frozen=True)
class Case:
    """One decode with every rung's real need and time; stands in for its `MemoryProfile`, too."""

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

    def estimate_cut(self, shape: LatentShape, cut: Cut, residuals: Residuals | None) -> PeakEstimate:
        """As a profile's: recorded live bytes with learned margins."""
        assert residuals is not None
        live = self.rows[cut.frames_per_chunk].live_bytes
        return residuals.estimate(self.traits.family, self.dtype, cut.strategy(shape.frames), live)


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

    residuals: Residuals = field(default_factory=lambda: Residuals("cpu"))
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
            strategy, again = cut.strategy(case.shape.frames), cut in tried
            self.residuals.out_of_memory(
                case.traits.family, "float32", strategy, live_bytes=row.live_bytes, free_bytes=budget_bytes
            )
            failures.append(cut)
            tried.add(cut)
            cut = self._after(case, budget_bytes, cut, tried, again=again)
        return _outcome(case, budget_bytes, spent, len(failures), chosen, succeeded=False)

    def _after(
        self, case: Case, budget_bytes: int, failed: Cut, tried: set[Cut], *, again: bool
    ) -> Cut | None:
        profile: Any = case
        ladder = Ladder(profile, case.shape, POLICY, self._inputs(case))
        below = ladder.after(failed, lambda cut: cut not in tried, _reading(budget_bytes), 0)
        return below or (ladder.instead(tried) if again else failed)

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
            return Ladder(profile, case.shape, POLICY, inputs).least().frames_per_chunk
        return plan.frames_per_chunk

    def _learn(self, case: Case, row: Row) -> None:
        strategy = strategy_of(row.frames_per_chunk, case.shape.frames)
        profile: Any = case
        self.speeds.observe(profile, case.shape, row.frames_per_chunk, row.seconds)
        measured = MeasuredPeak(row.allocated_bytes, row.fragmentation_bytes, row.outside_bytes)
        self.residuals.observe(
            case.traits.family, "float32", strategy, live_bytes=row.live_bytes, measured=measured
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


def draws(found: Sequence[Case], count: int, seed: int) -> Iterator[tuple[Case, int]]:
    """Random decodes with random budgets in which at least the smallest rung really fits."""
    draw = random.Random(seed)
    for _ in range(count):
        case = draw.choice(found)
        needs = sorted(row.needed_bytes for row in case.rows.values())
        yield case, round(draw.uniform(needs[0], 1.3 * needs[-1]))


def summary(machines: Sequence[Sequence[Outcome]]) -> dict[str, Any]:
    """The figures that the bounds are on, over all machines, and the 95th percentile of each."""
    outcomes = [each for machine in machines for each in machine]
    ratios = [each.ratio for each in outcomes]
    return {
        "decodes": len(outcomes),
        "failed": sum(not each.succeeded for each in outcomes),
        "median": round(median(ratios), 3),
        "p95": round(quantiles(ratios, n=20)[-1], 3),
        "p95_of_each_machine": [
            round(quantiles([each.ratio for each in machine], n=20)[-1], 3) for machine in machines
        ],
        "retries": sum(each.retries for each in outcomes),
    }


def keeps_bounds(figures: dict[str, Any]) -> bool:
    """Whether a policy is as good as asked for."""
    return all(figures[name] <= bound for name, bound in BOUNDS.items())


def cold_starts(found: Sequence[Case], sequences: int = 100) -> dict[str, Any]:
    """The first 20 jobs on a machine never seen, one model a machine, many machines."""
    lost, retries, below, jobs = 0, [], 0, 0
    models = sorted({case.config_digest for case in found})
    for seed in range(sequences):
        mine = [case for case in found if case.config_digest == models[seed % len(models)]]
        planner = Planner()
        outcomes = [planner.decode(case, budget) for case, budget in draws(mine, 20, seed)]
        lost += sum(not each.succeeded for each in outcomes)
        retries.append(sum(each.retries for each in outcomes))
        below += sum(each.rungs_below > 1 for each in outcomes)
        jobs += len(outcomes)
    return {
        "machines": sequences,
        "jobs": jobs,
        "jobs_lost": lost,
        "most_retries_of_a_machine": max(retries),
        "machines_with_more_than_one_retry": sum(each > 1 for each in retries),
        "jobs_more_than_one_rung_below_the_best": below,
    }


def replayed(
    found: Sequence[Case], policy: Callable[[], Callable[[Case, int], Outcome]], seeds: Iterable[int] = SEEDS
) -> Iterator[list[Outcome]]:
    """Outcomes of each machine's draws, by a policy that starts anew on each."""
    for seed in seeds:
        decode = policy()
        yield [decode(case, budget) for case, budget in draws(found, DRAWS, seed)]


def run(recorded: Path) -> dict[str, Any]:
    """Every policy on the same draws, and the cold starts."""
    found = cases(recorded)
    mean_need = median(row.needed_bytes for case in found for row in case.rows.values())
    policies: dict[str, Callable[[], Callable[[Case, int], Outcome]]] = {
        "framefit": lambda: Planner().decode,
        "framefit where nothing may be tried": lambda: Planner(may_fail=False).decode,
        "always per-frame": lambda: always(lambda _: 1),
        "always batched": lambda: always(lambda case: case.shape.frames),
        # what a tool does that knows the card's size and not what is free on it
        "threshold on total memory": lambda: always(
            lambda case: case.shape.frames if case.rows[case.shape.frames].live_bytes < mean_need else 1
        ),
    }
    figures = {name: summary(list(replayed(found, policy))) for name, policy in policies.items()}
    needs = [row.needed_bytes for case in found for row in case.rows.values()]
    return {
        "decodes": len(found),
        "megabytes": [round(min(needs) / MB), round(max(needs) / MB)],
        "policies": figures,
        "cold_start": cold_starts(found),
    }


def as_markdown(found: dict[str, Any]) -> str:
    """The tables, with how they were made."""
    text = "Replayed by `tests/bench/regret.py` from real decodes (`recordings-*cpu.jsonl`). Bounds: no "
    text += f"failure, median {BOUNDS['median']}, 95th percentile {BOUNDS['p95']}. {DRAWS} draws on each of "
    text += f"{len(SEEDS)} machines that know nothing at first; in brackets their 95th percentiles.\n"
    for name, part in found["recordings"].items():
        least, most = part["megabytes"]
        text += f"\n## {name}: {part['decodes']} decodes, rungs of {least} to {most} MB\n\n"
        text += "| policy | decodes | failed | median time / best feasible | p95 | retries | in bounds |\n"
        text += "|---|---|---|---|---|---|---|\n"
        for policy, row in part["policies"].items():
            each = ", ".join(f"{value:.2f}" for value in row["p95_of_each_machine"])
            text += f"| {policy} | {row['decodes']} | {row['failed']} | {row['median']:.3f} "
            text += f"| {row['p95']:.3f} ({each}) "
            text += f"| {row['retries']} | {'yes' if keeps_bounds(row) else 'no'} |\n"
        text += _cold_text(part["cold_start"])
    return text


def _cold_text(cold: dict[str, Any]) -> str:
    return (
        f"\nFirst 20 jobs on each of {cold['machines']} machines that know nothing: {cold['jobs_lost']} of "
        f"{cold['jobs']} jobs lost, at most {cold['most_retries_of_a_machine']} chunks retried on a machine "
        f"(more than one on {cold['machines_with_more_than_one_retry']}), "
        f"{cold['jobs_more_than_one_rung_below_the_best']} jobs more than one rung below the best feasible.\n"
    )


def main() -> None:
    """Run and write."""
    found = {"bounds": BOUNDS, "recordings": {name: run(path) for name, path in RECORDED.items()}}
    (OUT / "regret-cpu.json").write_text(json.dumps(found, indent=1) + "\n")
    (OUT / "regret-cpu.md").write_text(as_markdown(found))
    print(as_markdown(found))  # noqa: T201


if __name__ == "__main__":
    main()
