"""Recorded decodes replayed (tests/bench/regret.py): what holds on every machine, and which policies fail."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[3] / "bench"))
import regret


@pytest.fixture(scope="module")
def found() -> list[regret.Case]:
    return regret.cases()


def test_the_planner_loses_no_decode_and_is_mostly_at_the_best_feasible_time(
    found: list[regret.Case],
) -> None:
    figures = regret.summary(list(regret.replayed(found, lambda: regret.Planner().decode, (1, 2))))
    assert figures["failed"] == 0
    assert figures["median"] <= regret.BOUNDS["median"]
    assert figures["p95"] < 1.4


def test_policies_that_look_at_no_free_memory_lose_decodes_on_the_same_draws(
    found: list[regret.Case],
) -> None:
    per_frame, batched = regret.always(lambda _: 1), regret.always(lambda case: case.shape.frames)
    for policy in (lambda: per_frame, lambda: batched):
        figures = regret.summary(list(regret.replayed(found, policy, (1, 2))))
        assert figures["failed"] > 0
        assert not regret.keeps_bounds(figures)
