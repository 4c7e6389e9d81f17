"""Which rung is chosen, from bytes alone. Each test reads as arithmetic on the profile in conftest."""

from dataclasses import replace

import pytest

from adaptive.errors import DoesNotFit, UnsupportedVae
from adaptive.memory.profile import MemoryProfile
from adaptive.planning.largest_shape import largest_shape_that_fits
from adaptive.planning.planner import (
    PlanInputs,
    Policy,
    SpeedModel,
    chunk_sizes,
    plan_decode,
    rungs,
)
from adaptive.types import LatentShape, MemoryReading, Strategy, VideoShape

KB = 1000
SHAPE = LatentShape(batch=1, channels=128, frames=7, height=100, width=100)  # 10,000 latent pixels
GIB = 2**30


def reading(free_bytes: int) -> MemoryReading:
    return MemoryReading("cpu", free_bytes, 64 * GIB, 0, 0, 0, "scripted")


def upper(profile: MemoryProfile, frames_per_chunk: int) -> int:
    return profile.estimate(SHAPE, frames_per_chunk).upper_bytes


NO_RESERVE = Policy(reserve_bytes=0)


@pytest.mark.parametrize(
    ("budget_chunk", "chosen", "strategy", "reason"),
    [
        (7, 7, Strategy.BATCHED, "fastest"),
        (4, 4, Strategy.CHUNKED, "fastest_that_fits"),
        (3, 3, Strategy.CHUNKED, "fastest_that_fits"),
        (1, 1, Strategy.PER_FRAME, "fastest_that_fits"),
    ],
)
def test_the_largest_chunk_that_fits_is_chosen(
    ltx_profile: MemoryProfile, budget_chunk: int, chosen: int, strategy: Strategy, reason: str
) -> None:
    plan = plan_decode(ltx_profile, SHAPE, reading(upper(ltx_profile, budget_chunk)), NO_RESERVE)
    assert (plan.frames_per_chunk, plan.strategy, plan.reason) == (chosen, strategy, reason)
    assert plan.exact


def test_one_byte_less_than_a_rung_needs_takes_the_next_rung(ltx_profile: MemoryProfile) -> None:
    plan = plan_decode(ltx_profile, SHAPE, reading(upper(ltx_profile, 7) - 1), NO_RESERVE)
    assert plan.frames_per_chunk == 4


@pytest.mark.parametrize(
    ("latent_frames", "sizes"),
    [(1, (1,)), (2, (2, 1)), (7, (7, 4, 3, 2, 1)), (16, (16, 8, 6, 4, 3, 2, 1))],
)
def test_a_chunk_size_that_saves_no_pass_is_never_considered(
    ltx_profile: MemoryProfile, latent_frames: int, sizes: tuple[int, ...]
) -> None:
    assert chunk_sizes(ltx_profile, latent_frames, Policy()) == sizes


@pytest.mark.parametrize(
    ("policy", "chosen"),
    [
        (Policy(strategy="batched"), 7),
        (Policy(strategy="chunked"), 4),
        (Policy(strategy="per_frame"), 1),
        (Policy(frames_per_chunk=5), 5),
        (Policy(frames_per_chunk=50), 7),
        (Policy(strategy="chunked", frames_per_chunk=3), 3),
    ],
)
def test_a_forced_strategy_is_used(ltx_profile: MemoryProfile, policy: Policy, chosen: int) -> None:
    plan = plan_decode(ltx_profile, SHAPE, reading(64 * GIB), policy)
    assert (plan.frames_per_chunk, plan.reason) == (chosen, "requested")


def test_a_forced_strategy_that_does_not_fit_is_refused(ltx_profile: MemoryProfile) -> None:
    free_bytes = upper(ltx_profile, 4)
    with pytest.raises(DoesNotFit) as refused:
        plan_decode(ltx_profile, SHAPE, reading(free_bytes), replace(NO_RESERVE, strategy="batched"))
    assert refused.value.needed_bytes == upper(ltx_profile, 7)
    assert refused.value.budget_bytes == free_bytes
    smaller = f"per_frame decoding would need {upper(ltx_profile, 1):,} bytes"
    assert smaller in str(refused.value), "the way that the caller did not ask for is named"


@pytest.mark.parametrize(
    "policy", [Policy(strategy="chunked"), Policy(strategy="per_frame"), Policy(frames_per_chunk=2)]
)
def test_chunks_of_a_vae_that_cannot_stream_are_refused(alone_profile: MemoryProfile, policy: Policy) -> None:
    with pytest.raises(UnsupportedVae):
        plan_decode(alone_profile, SHAPE, reading(64 * GIB), policy)


def test_chunks_that_would_hold_all_frames_are_refused(
    ltx_profile: MemoryProfile,
) -> None:
    for size in (7, 99):
        with pytest.raises(UnsupportedVae, match=f"chunks of {size}: .*fewer than 7"):
            plan_decode(
                ltx_profile, SHAPE, reading(64 * GIB), Policy(strategy="chunked", frames_per_chunk=size)
            )
    single = replace(SHAPE, frames=1)
    plan = plan_decode(ltx_profile, single, reading(64 * GIB), Policy(strategy="chunked", frames_per_chunk=4))
    assert plan.strategy is Strategy.BATCHED, "a single latent frame has no chunks"


def test_a_vae_that_cannot_stream_is_decoded_in_one_call(alone_profile: MemoryProfile) -> None:
    plan = plan_decode(alone_profile, SHAPE, reading(64 * GIB), Policy())
    assert (plan.strategy, plan.reason) == (Strategy.BATCHED, "only_strategy")
    with pytest.raises(DoesNotFit):
        plan_decode(alone_profile, SHAPE, reading(10), Policy())


def test_what_fits_on_no_rung_names_the_bytes_of_the_smallest(ltx_profile: MemoryProfile) -> None:
    with pytest.raises(DoesNotFit) as refused:
        plan_decode(ltx_profile, SHAPE, reading(1000), NO_RESERVE)
    assert refused.value.needed_bytes == upper(ltx_profile, 1)
    assert refused.value.budget_bytes == 1000


def test_reserve_and_budget_both_limit_what_a_decode_takes(ltx_profile: MemoryProfile) -> None:
    free_bytes = upper(ltx_profile, 7)
    reserved = plan_decode(ltx_profile, SHAPE, reading(free_bytes), Policy(reserve_bytes=1))
    assert (reserved.frames_per_chunk, reserved.budget_bytes) == (4, free_bytes - 1)
    capped = plan_decode(ltx_profile, SHAPE, reading(64 * GIB), Policy(budget_bytes=upper(ltx_profile, 2)))
    assert (capped.frames_per_chunk, capped.budget_bytes) == (2, upper(ltx_profile, 2))


def test_memory_the_decode_holds_itself_counts_as_available(ltx_profile: MemoryProfile) -> None:
    free_bytes = upper(ltx_profile, 4) - 5_000
    without = plan_decode(ltx_profile, SHAPE, reading(free_bytes), NO_RESERVE)
    holding = plan_decode(ltx_profile, SHAPE, reading(free_bytes), NO_RESERVE, PlanInputs(held_bytes=5_000))
    assert (without.frames_per_chunk, holding.frames_per_chunk) == (3, 4)


def test_a_gathered_video_counts_on_streamed_rungs_only(ltx_profile: MemoryProfile) -> None:
    kept = PlanInputs(kept_output_bytes=30 * KB)
    ladder = rungs(ltx_profile, SHAPE, 64 * GIB, NO_RESERVE, kept)
    extra = {rung.frames_per_chunk: rung.predicted.live_bytes for rung in ladder}
    assert extra[7] == ltx_profile.live_bytes(SHAPE, 7)
    assert extra[4] == ltx_profile.live_bytes(SHAPE, 4) + 30 * KB


def test_measured_speed_overrules_the_rule_that_larger_is_faster(ltx_profile: MemoryProfile) -> None:
    free_pass = SpeedModel(
        work_seconds=1e-6, step_seconds=0.0
    )  # chunks cost nothing: the smallest is as fast
    dear_pass = SpeedModel(work_seconds=1e-6, step_seconds=0.01)
    plan = plan_decode(ltx_profile, SHAPE, reading(64 * GIB), NO_RESERVE, PlanInputs(speed=dear_pass))
    assert plan.frames_per_chunk == 7
    assert plan.predicted_seconds == pytest.approx(0.07 + 0.01)
    order = [
        rung.frames_per_chunk
        for rung in rungs(ltx_profile, SHAPE, 64 * GIB, NO_RESERVE, PlanInputs(speed=free_pass))
    ]
    assert order == [7, 4, 3, 2, 1]


@pytest.mark.parametrize("free_gib", [0.05, 0.2, 1, 4])
def test_the_largest_shape_that_fits_really_is_the_largest(
    ltx_profile: MemoryProfile, free_gib: float
) -> None:
    budget = int(free_gib * GIB)
    like = VideoShape(frames=49, height=32 * 400, width=32 * 600)
    largest = largest_shape_that_fits(ltx_profile, like, budget)
    assert largest is not None
    assert largest.frames == like.frames
    assert largest.width / largest.height == pytest.approx(1.5, rel=0.05)

    def needs(video: VideoShape) -> int:
        return ltx_profile.estimate(ltx_profile.traits.latent_shape(video), 1).upper_bytes

    assert needs(largest) <= budget
    wider = VideoShape(largest.frames, round((largest.width + 32) / 1.5 / 32) * 32, largest.width + 32)
    assert wider.width > like.width or needs(wider) > budget


def test_no_shape_fits_into_nothing(ltx_profile: MemoryProfile) -> None:
    assert largest_shape_that_fits(ltx_profile, VideoShape(49, 512, 768), 1000) is None


@pytest.mark.parametrize(
    "fields",
    [
        {"strategy": "whole"},
        {"strategy": "approximate_tiled"},
        {"strategy": "tiled", "frames_per_chunk": 1},
        {"frames_per_chunk": 0},
        {"strategy": "batched", "frames_per_chunk": 4},
        {"strategy": "per_frame", "frames_per_chunk": 2},
        {"budget_bytes": -1},
        {"reserve_bytes": -1},
    ],
)
def test_a_policy_that_contradicts_itself_is_refused(fields: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=r"must|excludes"):
        Policy(**fields)  # type: ignore[arg-type]
