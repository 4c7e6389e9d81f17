"""Where running out of memory costs a chunk and nothing else, a faster rung may be tried whose bound does not
fit.
"""

from dataclasses import replace
from typing import Any

import pytest

from adaptive.memory.margin_fit import TRUSTED_OBSERVATIONS
from adaptive.memory.margins import LearnedMargins
from adaptive.memory.profile import MemoryProfile
from adaptive.memory.speed import SpeedModel
from adaptive.planning.planner import PlanInputs, Policy, plan_decode, rungs
from adaptive.types import Chunking, Cut, DecodePlan, LatentShape, MeasuredPeak, MemoryReading, Strategy
from app.scheduling.plan_view import plan_json, rungs_json

SHAPE = LatentShape(1, 16, 8, 100, 100)
MB = 10**6
LIVE = 80 * MB  # of the batched decode
SPEED = SpeedModel(1e-5, 0.0, 1e-5)  # chunks of four take 3/8 longer


def plan(profile: MemoryProfile, residuals: LearnedMargins, free_bytes: int, **inputs: Any) -> DecodePlan:
    reading = MemoryReading("cpu", free_bytes, 2 * free_bytes, 0, 0, 0, "test")
    inputs = {"may_fail": True, "speed": SPEED, **inputs}
    return plan_decode(
        profile,
        SHAPE,
        reading,
        Policy(reserve_bytes=0),
        PlanInputs(residuals=residuals, **inputs),
    )


def learned(ratios: list[float]) -> LearnedMargins:
    residuals = LearnedMargins("cpu")
    for ratio in ratios:
        measured = MeasuredPeak(round(ratio * LIVE))
        residuals.observe(
            "ltx",
            "float32",
            Strategy.BATCHED,
            live_bytes=LIVE,
            measured=measured,
            chunking=Chunking(8, 8),
        )
    return residuals


def test_what_is_expected_to_fit_is_tried_while_little_is_known(ltx_profile: MemoryProfile) -> None:
    residuals = LearnedMargins("cpu")
    expected = ltx_profile.estimate_cut(SHAPE, Cut(8), residuals)
    tried = plan(ltx_profile, residuals, expected.expected_bytes)
    assert (tried.frames_per_chunk, tried.reason) == (8, "fits_probably")
    assert "needs probably" in tried.detail
    assert plan(ltx_profile, residuals, expected.expected_bytes - MB).frames_per_chunk == 4
    assert plan(ltx_profile, residuals, expected.expected_bytes, may_fail=False).frames_per_chunk == 4
    assert plan(ltx_profile, residuals, expected.expected_bytes, speed=None).frames_per_chunk == 8


def test_the_ways_to_decode_say_which_one_is_tried(ltx_profile: MemoryProfile) -> None:
    residuals = LearnedMargins("cpu")
    free = ltx_profile.estimate_cut(SHAPE, Cut(8), residuals).expected_bytes
    inputs = PlanInputs(residuals=residuals, may_fail=True, speed=SPEED)
    ladder = rungs(ltx_profile, SHAPE, free, Policy(reserve_bytes=0), inputs)
    views = rungs_json(ladder, plan_json(plan(ltx_profile, residuals, free)))
    assert [(view["frames_per_chunk"], view["fits_now"]) for view in views if view["chosen"]] == [(8, False)]
    assert views[0]["why"] == "probably fits, and is faster on average"
    assert views[1]["why"].startswith("takes ")


def test_a_failure_is_not_tried_again_with_as_little(ltx_profile: MemoryProfile) -> None:
    residuals = LearnedMargins("cpu")
    free = ltx_profile.estimate_cut(SHAPE, Cut(8), residuals).expected_bytes
    residuals.out_of_memory("ltx", "float32", Strategy.BATCHED, live_bytes=LIVE, free_bytes=free)
    assert plan(ltx_profile, residuals, free).frames_per_chunk == 4
    assert not residuals.estimate("ltx", "float32", Strategy.BATCHED, LIVE).tentative


@pytest.mark.parametrize(("place", "frames_per_chunk"), [(0.1, 4), (0.9, 8)])
def test_once_enough_is_known_a_try_must_be_worth_its_risk(
    ltx_profile: MemoryProfile, place: float, frames_per_chunk: int
) -> None:
    residuals = learned([1.0, 1.1, 1.2, 1.3, 1.6][:TRUSTED_OBSERVATIONS])
    known = ltx_profile.estimate_cut(SHAPE, Cut(8), residuals)
    assert not known.tentative
    free = known.expected_bytes + round(place * (known.upper_bytes - known.expected_bytes))
    assert plan(ltx_profile, residuals, free).frames_per_chunk == frames_per_chunk


def test_the_reload_of_idle_weights_is_no_part_of_a_decodes_own_time(ltx_profile: MemoryProfile) -> None:
    residuals = LearnedMargins("cpu")
    upper = ltx_profile.estimate_cut(SHAPE, Cut(8), residuals).upper_bytes
    dropping = plan(
        ltx_profile,
        residuals,
        upper - MB,
        may_fail=False,
        droppable_bytes=2 * MB,
        reload_seconds=0.125,
    )
    assert (dropping.frames_per_chunk, dropping.dropped_bytes) == (8, 2 * MB)
    assert dropping.predicted_seconds == pytest.approx(0.9 + 0.125)
    assert dropping.decode_seconds == pytest.approx(0.9)
    assert replace(dropping, predicted_seconds=None).decode_seconds is None


def test_margins_read_from_a_summary_are_as_tentative_as_the_originals() -> None:
    for residuals in (learned([1.1]), learned([1.1] * TRUSTED_OBSERVATIONS)):
        told = LearnedMargins.from_summary("cpu", residuals.summary())
        for strategy in (Strategy.BATCHED, Strategy.CHUNKED):
            before = residuals.estimate("ltx", "float32", strategy, LIVE)
            assert told.estimate("ltx", "float32", strategy, LIVE).tentative == before.tentative
