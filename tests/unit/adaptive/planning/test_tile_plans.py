"""Which tiles are tried, how they lie, and when the planner takes them."""

from dataclasses import replace
from itertools import pairwise

import pytest

from adaptive.errors import DoesNotFit, UnsupportedVae
from adaptive.memory.profile import Curve, MemoryProfile, TileCosts
from adaptive.planning.planner import Policy, plan_decode, rungs
from adaptive.tiles import (
    largest_tile,
    overlap_latent_pixels,
    overlapping_spans,
    strip_count,
    strip_numbers,
    strips,
    tile_grids,
)
from adaptive.types import Cut, LatentShape, MemoryReading, SpatialTiles, Strategy

SHAPE = LatentShape(batch=1, channels=128, frames=7, height=32, width=48)
NO_RESERVE = Policy(reserve_bytes=0)


@pytest.fixture
def tiled_profile(ltx_profile: MemoryProfile) -> MemoryProfile:
    """Per-frame decoding takes 1500 bytes a latent pixel, strips 400 and 1000 a pixel of the strip."""
    costs = TileCosts(2.0, *(Curve((2,), (value,)) for value in (650.0, 400.0, 1000.0)))
    return replace(ltx_profile, tiled=costs)


def reading(free_bytes: int) -> MemoryReading:
    return MemoryReading("cpu", free_bytes, 2**40, 0, 0, 0, "scripted")


def needs(profile: MemoryProfile, cut: Cut, shape: LatentShape = SHAPE) -> int:
    return profile.estimate_cut(shape, cut).upper_bytes


@pytest.mark.parametrize(("height", "rows"), [(1, 1), (2, 2), (7, 2), (7, 3), (7, 100), (32, 5)])
def test_strips_cover_every_row_once(height: int, rows: int) -> None:
    cut = strips(height, rows)
    assert [row for span in cut for row in range(span.start, span.stop)] == list(range(height))
    assert len(cut) <= rows


def test_strips_are_counted_without_laying_them() -> None:
    sizes = [(height, rows) for height in range(1, 40) for rows in range(1, 65)]
    assert [strip_count(*size) for size in sizes] == [len(strips(*size)) for size in sizes]


@pytest.mark.parametrize(("height", "numbers"), [(1, ()), (2, (2,)), (5, (2, 3, 5)), (16, (2, 4, 8, 16))])
def test_strips_worth_trying_end_at_one_row_each(height: int, numbers: tuple[int, ...]) -> None:
    assert strip_numbers(height) == numbers


@pytest.mark.parametrize("parts", [1, 2, 3, 5])
def test_overlapping_parts_share_as_much_as_they_should_with_each_neighbour(parts: int) -> None:
    spans = overlapping_spans(23, parts, 4)
    assert (spans[0].start, spans[-1].stop) == (0, 23)
    assert [left.stop - right.start for left, right in pairwise(spans)] == [4] * (parts - 1)


def test_parts_smaller_than_their_overlap_are_refused() -> None:
    with pytest.raises(ValueError, match="cannot be cut"):
        overlapping_spans(10, 3, 4)


@pytest.mark.parametrize("ratio", [8, 32])
def test_every_grid_worth_trying_can_be_laid_and_is_smaller_than_the_one_before(ratio: int) -> None:
    shape = LatentShape(1, 4, 3, 60, 107)
    areas = [
        height * width for height, width in (largest_tile(shape, g, ratio) for g in tile_grids(shape, ratio))
    ]
    assert areas == sorted(areas, reverse=True)
    assert areas[-1] < 0.3 * 60 * 107
    assert overlap_latent_pixels(ratio) * ratio == 128


def test_a_picture_too_small_to_overlap_has_no_grid() -> None:
    assert tile_grids(LatentShape(1, 4, 3, 7, 7), 32) == ()


def test_tiles_are_taken_only_when_one_whole_frame_does_not_fit(tiled_profile: MemoryProfile) -> None:
    per_frame = needs(tiled_profile, Cut(1))
    plan = plan_decode(tiled_profile, SHAPE, reading(per_frame), NO_RESERVE)
    assert (plan.strategy, plan.tiles.count) == (Strategy.PER_FRAME, 1)
    plan = plan_decode(tiled_profile, SHAPE, reading(per_frame - 1), NO_RESERVE)
    assert (plan.strategy, plan.tiles, plan.exact) == (Strategy.TILED, SpatialTiles(2), True)
    assert (plan.frames_per_chunk, plan.reason) == (1, "fastest_that_fits")


def test_the_fewest_strips_that_fit_are_taken(tiled_profile: MemoryProfile) -> None:
    for rows in (2, 4, 8):
        budget = needs(tiled_profile, Cut(1, SpatialTiles(rows)))
        assert plan_decode(tiled_profile, SHAPE, reading(budget), NO_RESERVE).tiles == SpatialTiles(rows)


def test_a_strip_costs_its_rows_and_those_it_needs_of_its_neighbours(tiled_profile: MemoryProfile) -> None:
    assert tiled_profile.cut_bytes(SHAPE, Cut(1, SpatialTiles(2))) == 48 * (400 * 32 + 1000 * (16 + 2))
    assert tiled_profile.cut_bytes(SHAPE, Cut(1, SpatialTiles(8))) == 48 * (400 * 32 + 1000 * (4 + 4))


def test_strips_below_what_the_earlier_layers_need_are_not_tried(tiled_profile: MemoryProfile) -> None:
    ladder = rungs(tiled_profile, SHAPE, 2**40, NO_RESERVE)
    assert [rung.tiles.rows for rung in ladder if rung.strategy is Strategy.TILED] == [2, 4, 8]
    with pytest.raises(DoesNotFit) as refused:
        plan_decode(tiled_profile, SHAPE, reading(1000), NO_RESERVE)
    assert refused.value.needed_bytes == needs(tiled_profile, Cut(1, SpatialTiles(8)))


def test_tiles_that_are_asked_for_are_used_or_refused(
    tiled_profile: MemoryProfile, ltx_profile: MemoryProfile
) -> None:
    plan = plan_decode(tiled_profile, SHAPE, reading(2**40), Policy(strategy="tiled"))
    assert (plan.strategy, plan.tiles.rows, plan.reason) == (Strategy.TILED, 2, "requested")
    with pytest.raises(UnsupportedVae, match="tiled"):
        plan_decode(ltx_profile, SHAPE, reading(2**40), Policy(strategy="tiled"))


def test_costs_of_tiles_survive_json(tiled_profile: MemoryProfile) -> None:
    again = MemoryProfile.from_json(tiled_profile.to_json())
    assert again.to_json() == tiled_profile.to_json()
