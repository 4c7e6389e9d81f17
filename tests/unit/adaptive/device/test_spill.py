"""Overflow into host memory is told from readings and times, and steps a decode down."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from adaptive.decoding.decoder import AdaptiveDecoder, DecodeEvent
from adaptive.device.spill import ChunkSpeed, SpillSign, SpillWatch, find_spill
from adaptive.memory.margins import LearnedMargins
from adaptive.memory.profile_trace import profile_of
from adaptive.planning.planner import Policy
from adaptive.testing import ScriptedProbe, small_ltx_vae
from adaptive.types import DecodeReport, LatentShape, MemoryReading

GIB = 2**30
USUAL = ChunkSpeed(1.0, 0.25, 0.25)
SLOW = ChunkSpeed(8.0, 2.0, 0.25)


def reading(free: float, own: float, *, reusable: float = 0.0, total: float = 24.0) -> MemoryReading:
    """In GiB."""
    sizes = (round(size * GIB) for size in (free, total, reusable, own))
    return MemoryReading("cuda:0", *sizes, 0, "scripted")


@pytest.mark.parametrize(
    ("before", "now", "speed", "expected"),
    [
        (reading(10, 8), reading(9, 9), USUAL, None),
        (reading(10, 8), reading(9, 9), SLOW, None),  # slow with much free: the card is busy, not full
        (reading(2, 20), reading(0, 37.2), USUAL, SpillSign.BEYOND_CAPACITY),
        (reading(1, 12), reading(0, 20), USUAL, SpillSign.DRIVER_FULL),
        (reading(4, 8), reading(0, 12), USUAL, None),  # it took what was there
        (reading(0, 8), reading(2, 10, reusable=2), USUAL, SpillSign.DRIVER_FULL),  # grown from nothing
        (reading(0, 20), reading(0, 20), SLOW, SpillSign.SLOW),
        (reading(0, 20), reading(0, 20), USUAL, None),  # full, but at speed: the allocator's own cache
        (reading(0, 20), reading(0, 20), ChunkSpeed(8.0, 2.0, None), None),
        (reading(0, 20), reading(0, 20), ChunkSpeed(0.05, 2.0, 0.25), None),  # too short to tell
    ],
)
def test_a_spill_is_recognised_by_memory_beyond_the_card_or_a_slow_full_card(
    before: MemoryReading, now: MemoryReading, speed: ChunkSpeed, expected: SpillSign | None
) -> None:
    assert find_spill(before, now, speed) is expected


class OverflowingCard(ScriptedProbe):
    """Free memory is always said to be plenty for a plan; what this process holds follows a script."""

    def __init__(self, own_bytes: list[int]) -> None:
        super().__init__([8 * GIB])
        self.own_bytes = own_bytes

    def read(self) -> MemoryReading:
        own = self.own_bytes[min(self.reads, len(self.own_bytes) - 1)]
        self.reads += 1
        return MemoryReading("cuda:0", 8 * GIB, 24 * GIB, 0, own, 0, "scripted")


@pytest.fixture(scope="module")
def vae() -> Any:
    return small_ltx_vae()


@pytest.fixture(scope="module")
def latents() -> Tensor:
    return torch.randn(1, 8, 8, 2, 3, generator=torch.Generator().manual_seed(1))


def decoded(
    vae: Any,
    latents: Tensor,
    own_bytes: list[int],
    policy: Policy,
    residuals: LearnedMargins | None = None,
) -> tuple[DecodeReport, list[DecodeEvent]]:
    events: list[DecodeEvent] = []
    decoder = AdaptiveDecoder(
        vae,
        probe=OverflowingCard(own_bytes),
        policy=policy,
        residuals=residuals or LearnedMargins("cuda"),
        on_event=events.append,
    )
    with torch.no_grad():
        expected = vae.decode(latents, return_dict=False)[0]
        frames = torch.cat(list(decoder.frames(latents)), 2)
    assert torch.allclose(frames, expected, atol=1e-4, rtol=0)
    return decoder.report, [event for event in events if event.kind == "spill"]


def test_a_chunk_that_spills_makes_the_next_one_smaller_and_is_counted(vae: Any, latents: Tensor) -> None:
    policy = Policy(strategy="chunked", frames_per_chunk=4)
    report, spills = decoded(vae, latents, [GIB, 30 * GIB, GIB], policy)
    assert report.spills == len(spills) == 1
    assert (spills[0].data["from"], spills[0].data["to"], spills[0].data["sign"]) == (4, 3, "beyond_capacity")
    assert spills[0].data["own_bytes"] == 30 * GIB
    assert report.frames_per_chunk == 3
    assert report.retries == 0


def test_a_whole_decode_that_spilled_is_planned_smaller_the_next_time(vae: Any, latents: Tensor) -> None:
    residuals, shape = LearnedMargins("cuda"), LatentShape(*latents.shape)
    profile = profile_of(vae)
    cold_bytes = profile.estimate(shape, 8, residuals).upper_bytes
    report, spills = decoded(vae, latents, [GIB, 30 * GIB], Policy(), residuals)
    assert report.spills == len(spills) == 1
    assert report.frames_per_chunk == spills[0].data["to"] == 8
    assert profile.estimate(shape, 8, residuals).upper_bytes > cold_bytes


def test_one_slow_chunk_may_be_a_pause_and_two_in_a_row_are_a_spill() -> None:
    full = reading(0, 20)
    watch = SpillWatch(full, 0.25)
    assert watch.after_chunk(full, 8.0, 4) is None
    assert watch.time_unreliable, "its time must not be learned from"
    assert watch.after_chunk(full, 1.0, 4) is None
    assert watch.after_chunk(full, 8.0, 4) is None, "slow again, but not in a row"
    assert watch.after_chunk(full, 8.0, 4) == (SpillSign.SLOW, full.free_bytes)


def test_bytes_beyond_the_card_need_no_second_chunk_as_a_witness() -> None:
    watch = SpillWatch(reading(2, 20), None)
    assert watch.after_chunk(reading(0, 37.2), 1.0, 4) == (SpillSign.BEYOND_CAPACITY, 2 * GIB)


def test_the_hosts_own_memory_has_nowhere_to_spill_to() -> None:
    full = replace(reading(0, 20), device="cpu")
    watch = SpillWatch(full, 0.25)
    assert [watch.after_chunk(full, 8.0, 4) for _ in range(4)] == [None] * 4
    assert find_spill(full, replace(full, own_bytes=30 * GIB), SLOW) is None
    assert not watch.time_unreliable


def test_nothing_is_called_a_spill_on_a_device_that_has_room(vae: Any, latents: Tensor) -> None:
    report, spills = decoded(vae, latents, [GIB], Policy())
    assert (report.spills, spills) == (0, [])
