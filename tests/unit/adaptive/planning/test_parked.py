"""A layer sweep on a card parks activations in host memory: the plan needs room there, too."""

from dataclasses import replace
from typing import Any

import pytest

from adaptive.errors import DoesNotFit
from adaptive.memory.margins import LearnedMargins
from adaptive.memory.profile import Curve, MemoryProfile, SweepCosts
from adaptive.planning.planner import PlanInputs, Policy, plan_decode
from adaptive.types import LatentShape, MemoryReading

SHAPE = LatentShape(1, 16, 8, 100, 100)
POLICY = Policy(reserve_bytes=0)
MB = 10**6


@pytest.fixture
def swept_profile(ltx_profile: MemoryProfile) -> MemoryProfile:
    """Parks 900 bytes a latent pixel and frame; on the CPU those count beside 1000 a frame of the chunk."""
    parked = {n: Curve((1, 2), (900.0, 1800.0)) for n in (1, 2, 4)}
    together = {n: Curve((1, 2), (1000.0 * n + 900, 1000.0 * n + 1800)) for n in (1, 2, 4)}
    return replace(ltx_profile, sweep=SweepCosts(together, parked))


def plan(profile: MemoryProfile, device: str, free_bytes: int, **inputs: Any) -> Any:
    reading = MemoryReading(device, free_bytes, 2 * free_bytes, 0, 0, 0, "test")
    return plan_decode(
        profile, SHAPE, reading, POLICY, PlanInputs(residuals=LearnedMargins(device), **inputs)
    )


def test_parked_activations_are_host_memory_on_a_card_and_part_of_the_peak_on_the_cpu(
    swept_profile: MemoryProfile,
) -> None:
    card = plan(swept_profile, "cuda:0", 308 * MB)
    assert card.frames_per_chunk == 1
    assert card.predicted.live_bytes == 10**4 * 1500
    assert card.predicted.host_bytes == 10**4 * 8 * 900
    assert "of host memory for parked activations" in card.detail
    cpu = swept_profile.estimate(SHAPE, 1, LearnedMargins("cpu"))
    assert (cpu.live_bytes, cpu.host_bytes) == (10**4 * (1000 + 8 * 900), 0)


def test_a_host_too_small_for_parked_activations_is_refused_with_its_own_numbers(
    swept_profile: MemoryProfile,
) -> None:
    with pytest.raises(DoesNotFit, match="parked in host memory") as refusal:
        plan(swept_profile, "cuda:0", 308 * MB, host_budget_bytes=71 * MB)
    assert (refusal.value.needed_bytes, refusal.value.budget_bytes) == (72 * MB, 71 * MB)
    assert plan(swept_profile, "cuda:0", 308 * MB, host_budget_bytes=72 * MB).frames_per_chunk == 1
    assert plan(swept_profile, "cuda:0", 10**4 * MB, host_budget_bytes=0).frames_per_chunk == 8


def test_a_profile_that_parks_survives_json(swept_profile: MemoryProfile) -> None:
    again = MemoryProfile.from_json(swept_profile.to_json())
    assert again.to_json() == swept_profile.to_json()
    assert again.sweep is not None
