"""How long a rung takes, from decodes timed before; and what is said of a decode afterwards."""

from dataclasses import replace

import pytest

from adaptive.memory.margins import LearnedMargins
from adaptive.memory.profile import MemoryProfile
from adaptive.memory.speed import SpeedModel, Speeds
from adaptive.planning.planner import PlanInputs, Policy, plan_decode, rungs
from adaptive.planning.regret import regret_of
from adaptive.types import LatentShape, MemoryReading, Strategy

GIB = 2**30
SHAPE = LatentShape(1, 128, 8, 100, 100)
FREE = Policy(reserve_bytes=0)
# A device of which we know the law: each pass costs launches and the frames at its border.
LAW = SpeedModel(work_seconds=2e-6, step_seconds=0.02, border_seconds=1e-6)


def timed(profile: MemoryProfile, law: SpeedModel = LAW) -> Speeds:
    speeds = Speeds()
    for frames in (5, 9):
        for side in (10, 40, 160):
            shape = LatentShape(1, 128, frames, side, side)
            for size in (1, 2, 3, frames):
                speeds.observe(profile, shape, size, law.seconds(shape, size))
    return speeds


@pytest.mark.parametrize("size", [1, 2, 4, 8])
def test_a_law_found_from_small_decodes_holds_for_large_ones(ltx_profile: MemoryProfile, size: int) -> None:
    law = timed(ltx_profile).model(ltx_profile)
    assert law is not None
    large = LatentShape(1, 128, 16, 300, 400)
    assert law.seconds(large, size) == pytest.approx(LAW.seconds(large, size), rel=0.05)


def test_a_chunk_size_that_does_not_fill_the_device_is_learned_to_be_slower(
    ltx_profile: MemoryProfile,
) -> None:
    speeds = timed(ltx_profile, replace(LAW, corrections={1: 3.0}))
    law = speeds.model(ltx_profile)
    assert law is not None
    assert law.seconds(SHAPE, 1) > 2 * law.seconds(SHAPE, 2)


def test_nothing_timed_predicts_nothing_and_one_decode_something(ltx_profile: MemoryProfile) -> None:
    speeds = Speeds()
    assert speeds.model(ltx_profile) is None
    speeds.observe(ltx_profile, SHAPE, 8, 2.0)
    law = speeds.model(ltx_profile)
    assert law is not None
    assert law.seconds(SHAPE, 8) == pytest.approx(2.0)


def test_ways_that_were_never_timed_are_taken_to_be_somewhat_slower_or_faster(
    ltx_profile: MemoryProfile,
) -> None:
    for size in (1, 8):
        speeds = Speeds()
        speeds.observe(ltx_profile, SHAPE, size, 2.0)
        law = speeds.model(ltx_profile)
        assert law is not None
        assert 1.2 < law.seconds(SHAPE, 1) / law.seconds(SHAPE, 8) < 1.6


def test_many_decodes_on_one_rung_do_not_crowd_out_what_another_taught(ltx_profile: MemoryProfile) -> None:
    speeds = timed(ltx_profile)
    for _ in range(200):
        speeds.observe(ltx_profile, SHAPE, 8, LAW.seconds(SHAPE, 8))
    law = speeds.model(ltx_profile)
    assert law is not None
    assert law.seconds(SHAPE, 1) == pytest.approx(LAW.seconds(SHAPE, 1), rel=0.05)
    assert speeds.observations(ltx_profile) < 60


def test_speeds_survive_json_and_a_summary_predicts_the_same(ltx_profile: MemoryProfile) -> None:
    speeds = timed(ltx_profile)
    law = speeds.model(ltx_profile)
    again = Speeds.from_json(speeds.to_json()).model(ltx_profile)
    told = Speeds.from_summary(speeds.summary()).model(ltx_profile)
    assert law is not None
    assert again == law
    assert told is not None
    assert told.seconds(SHAPE, 2) == law.seconds(SHAPE, 2)
    other = replace(ltx_profile, config_digest="another")
    assert speeds.model(other) is None


def reading(free_bytes: int) -> MemoryReading:
    return MemoryReading("cuda:0", free_bytes, 64 * GIB, 0, 0, 0, "scripted")


def test_idle_weights_are_dropped_where_that_is_faster_than_smaller_chunks(
    ltx_profile: MemoryProfile,
) -> None:
    residuals = LearnedMargins("cuda:0")
    tight = ltx_profile.estimate(SHAPE, 2, residuals).upper_bytes
    inputs = PlanInputs(residuals=residuals, speed=LAW, droppable_bytes=GIB, reload_seconds=0.001)
    plan = plan_decode(ltx_profile, SHAPE, reading(tight), FREE, inputs)
    assert (plan.frames_per_chunk, plan.dropped_bytes, plan.reason) == (8, GIB, "fits_without_idle_weights")
    assert "after dropping 1,024 MiB" in plan.detail
    assert plan.predicted_seconds == pytest.approx(LAW.seconds(SHAPE, 8) + 0.001)
    slow = replace(inputs, reload_seconds=60.0)
    kept = plan_decode(ltx_profile, SHAPE, reading(tight), FREE, slow)
    assert (kept.frames_per_chunk, kept.dropped_bytes) == (2, 0)


def test_idle_weights_stay_where_everything_fits_and_a_jobs_own_cap_is_not_lifted(
    ltx_profile: MemoryProfile,
) -> None:
    inputs = PlanInputs(residuals=LearnedMargins("cuda:0"), speed=LAW, droppable_bytes=GIB)
    plan = plan_decode(ltx_profile, SHAPE, reading(64 * GIB), FREE, inputs)
    assert (plan.frames_per_chunk, plan.dropped_bytes) == (8, 0)
    cap = ltx_profile.estimate(SHAPE, 4, inputs.residuals).upper_bytes
    capped = plan_decode(ltx_profile, SHAPE, reading(64 * GIB), replace(FREE, budget_bytes=cap), inputs)
    assert (capped.frames_per_chunk, capped.dropped_bytes) == (4, 0)


@pytest.mark.parametrize(
    ("taken", "regretted", "words"),
    [(1.0, True, "batched would have fitted"), (1.6, False, "every faster way needed")],
)
def test_a_margin_that_was_too_wide_is_regretted_and_one_that_was_needed_is_not(
    ltx_profile: MemoryProfile, taken: float, regretted: bool, words: str
) -> None:
    inputs = PlanInputs(residuals=LearnedMargins("cuda:0"), speed=LAW)
    budget = ltx_profile.estimate(SHAPE, 8, inputs.residuals).upper_bytes - 1
    plan = plan_decode(ltx_profile, SHAPE, reading(budget), FREE, inputs)
    ladder = rungs(ltx_profile, SHAPE, budget, FREE, inputs)
    measured = round(plan.predicted.live_bytes * taken)
    # the cold margin's constant is as large as this decode, so a device that has it all is no regret
    cramped = replace(plan, budget_bytes=round(1.2 * ltx_profile.live_bytes(SHAPE, 8)))
    regret = regret_of(cramped, ladder, measured_bytes=measured, seconds=2.0)
    assert words in regret.detail
    assert (regret.seconds > 0) is regretted
    saved = 1 - LAW.seconds(SHAPE, 8) / LAW.seconds(SHAPE, plan.frames_per_chunk)
    assert regret.seconds == pytest.approx(2.0 * saved if regretted else 0.0, abs=1e-3)


def test_a_regretted_way_that_drops_idle_weights_has_their_memory(ltx_profile: MemoryProfile) -> None:
    inputs = PlanInputs(residuals=LearnedMargins("cuda:0"), speed=LAW, droppable_bytes=GIB)
    live_bytes = ltx_profile.live_bytes(SHAPE, 8)
    ladder = rungs(ltx_profile, SHAPE, live_bytes // 2, FREE, inputs)
    plan = plan_decode(
        ltx_profile, SHAPE, reading(64 * GIB), replace(FREE, strategy=Strategy.PER_FRAME), inputs
    )
    tight = replace(plan, budget_bytes=live_bytes // 2)
    regret = regret_of(tight, ladder, measured_bytes=plan.predicted.live_bytes, seconds=2.0)
    assert "would have fitted" in regret.detail
    assert f"of {(live_bytes // 2 + GIB) / 2**20:,.0f} MiB" in regret.detail


def test_the_fastest_way_is_never_regretted(ltx_profile: MemoryProfile) -> None:
    inputs = PlanInputs(residuals=LearnedMargins("cuda:0"), speed=LAW)
    plan = plan_decode(ltx_profile, SHAPE, reading(64 * GIB), FREE, inputs)
    ladder = rungs(ltx_profile, SHAPE, 64 * GIB, FREE, inputs)
    regret = regret_of(plan, ladder, measured_bytes=1, seconds=9.0)
    assert (regret.seconds, regret.detail) == (0.0, "none: it ran the fastest way")


@pytest.mark.parametrize("drift", [0.97, 1.0, 1.03])
def test_what_takes_as_long_is_chosen_alike_though_predictions_drift(
    ltx_profile: MemoryProfile, drift: float
) -> None:
    """Two jobs of one seed must not be cut differently: sums in another order round a pixel differently."""
    whole, chunk = LAW.seconds(SHAPE, 8), LAW.seconds(SHAPE, 4)
    level = replace(LAW, corrections={**LAW.corrections, 2: drift * whole / chunk})
    inputs = PlanInputs(residuals=LearnedMargins("cuda:0"), speed=level)
    plan = plan_decode(ltx_profile, SHAPE, reading(64 * GIB), FREE, inputs)
    assert plan.frames_per_chunk == 8
