"""Measures how far decisions are from the best: replays decodes with our planner and simpler policies.

    python tests/bench/regret.py

A draw is a model, a shape and a budget between the measured need of the smallest rung and 1.3 times that of
the largest. The real peak and seconds of each rung are known (`recordings.py`), so the outcome of each choice
is known, too: a rung that needs more than the budget runs out of memory. The planner starts without learned
costs and learns from each decode and each failure, as the service does. After an out-of-memory it continues
with a smaller chunk, which costs one chunk. A policy without such a fallback loses the video. In these tiny
decodes the memory beside tensors is as large as the tensors. Writes `results/regret-cpu.json` and `.md`.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from statistics import median, quantiles
from typing import Any

from replay import RECORDED, Case, Outcome, Planner, always, cases, draws, repeats

DRAWS = 300
SEEDS = range(1, 6)  # each is a machine that knows nothing at first
OTHER_SEEDS = range(41, 46)  # not looked at while the policy was made
BOUNDS = {"failed": 0, "median": 1.05, "p95": 1.25}
MACHINES = 100  # of the cold starts
OUT = Path(__file__).parent / "results"
MB = 10**6


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


def cold_starts(found: Sequence[Case], first_seed: int, may_fail: bool = True) -> dict[str, Any]:
    """The first 20 jobs on a machine never seen, one model a machine, many machines."""
    retries, outcomes = [], list[Outcome]()
    models = sorted({case.config_digest for case in found})
    for index in range(MACHINES):
        mine = [case for case in found if case.config_digest == models[index % len(models)]]
        planner = Planner(may_fail=may_fail)
        first = [planner.decode(case, budget) for case, budget in draws(mine, 20, first_seed + index)]
        retries.append(sum(each.retries for each in first))
        outcomes += first
    low = [each for each in outcomes if each.rungs_below > 1]
    return {
        "machines": MACHINES,
        "jobs": len(outcomes),
        "jobs_lost": sum(not each.succeeded for each in outcomes),
        "most_retries_of_a_machine": max(retries),
        "machines_with_more_than_one_retry": sum(each > 1 for each in retries),
        "jobs_more_than_one_rung_below_the_best": len(low),
        "of_these_more_than_a_tenth_slower": sum(each.ratio > 1.1 for each in low),
    }


def replayed(
    found: Sequence[Case],
    policy: Callable[[], Callable[[Case, int], Outcome]],
    seeds: Iterable[int] = SEEDS,
    factors: Sequence[float] | None = None,
) -> Iterator[list[Outcome]]:
    """Outcomes of each machine's draws, by a policy that starts anew on each."""
    for seed in seeds:
        decode = policy()
        yield [decode(case, budget) for case, budget in draws(found, DRAWS, seed, factors)]


def once(found: Sequence[Case], seeds: Iterable[int] = range(1, 11)) -> Iterator[list[Outcome]]:
    """Outcomes of decodes of which none comes twice: what was learned must hold for others."""
    for seed in seeds:
        planner, draw = Planner(), random.Random(seed)
        order = draw.sample(found, len(found))
        yield [planner.decode(case, next(draws([case], 1, draw.randrange(2**32)))[1]) for case in order]


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
    planner, careful = policies["framefit"], policies["framefit where nothing may be tried"]
    figures["framefit, other draws"] = summary(list(replayed(found, planner, OTHER_SEEDS)))
    figures["the same where nothing may be tried"] = summary(list(replayed(found, careful, OTHER_SEEDS)))
    figures["framefit, needs vary"] = summary(list(replayed(found, planner, SEEDS, repeats())))
    figures["framefit, no decode twice"] = summary(list(once(found)))
    needs = [row.needed_bytes for case in found for row in case.rows.values()]
    return {
        "decodes": len(found),
        "megabytes": [round(min(needs) / MB), round(max(needs) / MB)],
        "policies": figures,
        "cold_start": {
            "trying": cold_starts(found, 0),
            "trying, other draws": cold_starts(found, 9000),
            "where nothing may be tried": cold_starts(found, 0, may_fail=False),
        },
    }


def as_markdown(found: dict[str, Any]) -> str:
    """The tables, with how they were made."""
    text = "Replayed by `tests/bench/regret.py` from real decodes (`recordings-*cpu.jsonl`). Bounds: no "
    text += f"failure, median {BOUNDS['median']}, 95th percentile {BOUNDS['p95']}. {DRAWS} draws on each of "
    text += (
        f"{len(SEEDS)} machines that know nothing at first; in brackets their 95th percentiles. Other draws: "
    )
    text += (
        "with seeds not looked at while the policy was made. Needs vary: by what repeats of the same decode "
    )
    text += "do (`repeats-cpu.jsonl`). No decode twice: each once on each of ten machines.\n"
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


def _cold_text(cold: dict[str, dict[str, Any]]) -> str:
    text = "\nFirst 20 jobs on each of 100 machines that know nothing, one model on each:\n\n"
    text += "| | jobs lost | most chunks retried on a machine | machines with more than one "
    text += "| jobs more than one rung below the best feasible | of these more than a tenth slower |\n"
    text += "|---|---|---|---|---|---|\n"
    for name, row in cold.items():
        text += f"| {name} | {row['jobs_lost']} of {row['jobs']} | {row['most_retries_of_a_machine']} "
        text += f"| {row['machines_with_more_than_one_retry']} "
        text += f"| {row['jobs_more_than_one_rung_below_the_best']} "
        text += f"| {row['of_these_more_than_a_tenth_slower']} |\n"
    return text


def main() -> None:
    """Run and write."""
    found = {"bounds": BOUNDS, "recordings": {name: run(path) for name, path in RECORDED.items()}}
    (OUT / "regret-cpu.json").write_text(json.dumps(found, indent=1) + "\n")
    (OUT / "regret-cpu.md").write_text(as_markdown(found))
    print(as_markdown(found))  # noqa: T201


if __name__ == "__main__":
    main()
