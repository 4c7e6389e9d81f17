"""What is learned beyond live bytes, from observations given by hand."""

import json
from pathlib import Path

import pytest

from adaptive.memory.learned_costs import LearnedCosts
from adaptive.memory.margin_fit import COLD_MARGINS
from adaptive.memory.margins import LearnedMargins
from adaptive.types import Chunking, MeasuredPeak, Strategy

MIB = 2**20
LIVE = 1000 * MIB
BATCHED, CHUNKED = Strategy.BATCHED, Strategy.CHUNKED


def upper(residuals: LearnedMargins, strategy: Strategy = BATCHED) -> int:
    return residuals.estimate("ltx", "float32", strategy, LIVE).upper_bytes


def observe(residuals: LearnedMargins, ratios: list[float], strategy: Strategy = BATCHED) -> None:
    for ratio in ratios:
        measured = MeasuredPeak(round(LIVE * ratio))
        residuals.observe("ltx", "float32", strategy, live_bytes=LIVE, measured=measured)


@pytest.mark.parametrize("device", ["cpu", "cuda:0"])
def test_before_anything_is_learned_the_margin_is_that_of_the_kind_of_device(device: str) -> None:
    cold = COLD_MARGINS["cpu" if device == "cpu" else "cuda"]
    estimate = LearnedMargins(device).estimate("ltx", "float32", BATCHED, LIVE)
    assert estimate.live_bytes == LIVE
    assert estimate.upper_bytes == round(LIVE * cold.upper_ratio) + cold.upper_constant_bytes
    assert LIVE < estimate.expected_bytes < estimate.upper_bytes


def test_observations_tighten_the_bound_but_never_below_the_highest_seen() -> None:
    residuals = LearnedMargins("cuda:0")
    cold = upper(residuals)
    observe(residuals, [1.10, 1.12, 1.11, 1.10, 1.13])
    assert LIVE * 1.13 <= upper(residuals) < cold


def test_observations_above_the_bound_widen_it_at_once() -> None:
    residuals = LearnedMargins("cpu")
    observe(residuals, [2.5])
    assert upper(residuals) > LIVE * 2.5


def test_a_strategy_of_which_nothing_is_known_is_as_careful_as_the_familys_others_were() -> None:
    residuals = LearnedMargins("cpu")
    before = upper(residuals, CHUNKED)
    observe(residuals, [3.0], BATCHED)
    assert upper(residuals, CHUNKED) > 3 * LIVE > before
    assert residuals.estimate("wan", "float32", CHUNKED, LIVE).upper_bytes == before
    observe(residuals, [1.1] * 5, CHUNKED)
    assert upper(residuals, CHUNKED) < before


def test_where_one_strategy_failed_another_of_which_nothing_is_known_counts_as_no_better() -> None:
    residuals = LearnedMargins("cuda")
    known = residuals.estimate("ltx", "float32", CHUNKED, LIVE)
    assert known.hoped_bytes is not None
    assert known.hoped_bytes < 2 * LIVE
    residuals.out_of_memory("ltx", "float32", BATCHED, live_bytes=LIVE, free_bytes=2 * LIVE)
    after = residuals.estimate("ltx", "float32", CHUNKED, LIVE)
    assert after.expected_bytes >= 2 * LIVE
    assert after.hoped_bytes is None, "nothing is tried that has just failed elsewhere"
    observe(residuals, [1.2], CHUNKED)
    assert residuals.estimate("ltx", "float32", CHUNKED, LIVE).expected_bytes < 2 * LIVE


def alike(residuals: LearnedMargins, ratio: float, live_bytes: int, chunking: Chunking) -> None:
    measured = MeasuredPeak(round(live_bytes * ratio))
    residuals.observe("ltx", "float32", CHUNKED, live_bytes=live_bytes, measured=measured, chunking=chunking)


def test_the_very_same_decode_takes_again_what_it_took() -> None:
    residuals, twos = LearnedMargins("cpu"), Chunking(6, 2)
    alike(residuals, 2.0, LIVE, twos)
    same = residuals.estimate("ltx", "float32", CHUNKED, LIVE, twos)
    assert same.expected_bytes == 2 * LIVE
    assert 2 * LIVE < same.upper_bytes < 2.1 * LIVE
    assert not same.tentative
    assert residuals.estimate("ltx", "float32", CHUNKED, LIVE + 1, twos).upper_bytes > 2.1 * LIVE
    assert residuals.estimate("ltx", "float32", CHUNKED, LIVE, Chunking(7, 2)).tentative


def test_decodes_of_as_many_frames_in_as_large_chunks_tell_more_than_others_of_their_strategy() -> None:
    residuals, twos, threes = LearnedMargins("cpu"), Chunking(6, 2), Chunking(6, 3)
    for size in range(1, 6):
        alike(residuals, 2.8, size * LIVE, twos)
        alike(residuals, 1.2, size * LIVE, threes)
    live = 7 * LIVE
    two, three = (residuals.estimate("ltx", "float32", CHUNKED, live, each) for each in (twos, threes))
    assert three.upper_bytes < 1.5 * live < 2.8 * live < two.upper_bytes
    assert residuals.estimate("ltx", "float32", CHUNKED, live, Chunking(9, 3)).upper_bytes > 2.8 * live


def test_what_was_too_little_for_the_very_same_decode_is_remembered_for_longer() -> None:
    residuals, twos = LearnedMargins("cpu"), Chunking(6, 2)
    kinds = {"live_bytes": LIVE, "free_bytes": 2 * LIVE, "chunking": twos}
    residuals.out_of_memory("ltx", "float32", CHUNKED, **kinds)  # type: ignore[arg-type]
    for _ in range(6):
        alike(residuals, 1.1, LIVE // 2, Chunking(4, 2))
    assert residuals.estimate("ltx", "float32", CHUNKED, LIVE, twos).upper_bytes > 2 * LIVE
    assert residuals.estimate("ltx", "float32", CHUNKED, LIVE + 1, twos).upper_bytes < 2 * LIVE


def test_an_out_of_memory_is_a_lower_bound_that_enough_successes_lift_again() -> None:
    residuals = LearnedMargins("cpu")
    observe(residuals, [1.1] * 5)
    residuals.out_of_memory("ltx", "float32", BATCHED, live_bytes=LIVE, free_bytes=2 * LIVE)
    assert upper(residuals) > 2 * LIVE
    observe(residuals, [1.1] * 5)
    assert upper(residuals) < 1.5 * LIVE


def test_a_failure_with_plenty_free_does_not_shut_a_strategy_out() -> None:
    residuals = LearnedMargins("cpu")
    residuals.out_of_memory("ltx", "float32", BATCHED, live_bytes=LIVE, free_bytes=400 * LIVE)
    assert upper(residuals) < 6 * LIVE
    observe(residuals, [1.1] * 5, CHUNKED)
    assert upper(residuals) < 1.6 * LIVE


def test_what_lies_outside_torch_is_learned_in_bytes_and_not_as_a_share_of_the_decode() -> None:
    residuals = LearnedMargins("cpu")
    small = 20 * MIB
    for _ in range(5):
        measured = MeasuredPeak(round(1.1 * small), fragmentation_bytes=2 * MIB, outside_bytes=200 * MIB)
        residuals.observe("ltx", "float32", BATCHED, live_bytes=small, measured=measured)
    assert residuals.estimate("ltx", "float32", BATCHED, small).upper_bytes > 222 * MIB
    assert upper(residuals) < 1.6 * LIVE, "two hundred megabytes are not ten times this decode"


def test_the_parts_of_what_was_learned_can_be_seen() -> None:
    residuals = LearnedMargins("cuda:0")
    measured = MeasuredPeak(LIVE + 200 * MIB, fragmentation_bytes=100 * MIB, outside_bytes=30 * MIB)
    for _ in range(3):
        residuals.observe("ltx", "bfloat16", CHUNKED, live_bytes=LIVE, measured=measured)
    seen = residuals.summary()["ltx/bfloat16/chunked"]
    assert (seen["observations"], seen["workspace_ratio"], seen["fragmentation_ratio"]) == (3, 0.2, 0.1)
    assert (seen["outside_bytes"], seen["too_little_ratio"]) == (30 * MIB, None)


def test_a_process_that_only_plans_predicts_by_the_summary_as_the_worker_does() -> None:
    residuals = LearnedMargins("cuda:0")
    observe(residuals, [1.1, 1.3, 1.2])
    residuals.out_of_memory("ltx", "float32", CHUNKED, live_bytes=LIVE, free_bytes=2 * LIVE)
    alike(residuals, 1.4, LIVE // 2, Chunking(6, 2))
    told = LearnedMargins.from_summary("cuda:0", json.loads(json.dumps(residuals.summary())))
    for strategy in Strategy:
        for chunking in (None, Chunking(6, 2), Chunking(6, 3)):
            for live in (LIVE, LIVE // 2):
                asked = "ltx", "float32", strategy, live, chunking
                assert told.estimate(*asked) == residuals.estimate(*asked)


def test_what_was_learned_survives_a_restart_on_the_same_device_and_build_only(tmp_path: Path) -> None:
    kept = LearnedCosts.none("cuda H200", "torch 2.13")
    observe(kept.residuals, [1.2, 1.3])
    kept.residuals.out_of_memory("ltx", "float32", CHUNKED, live_bytes=LIVE, free_bytes=3 * LIVE)
    path = tmp_path / "learned.json"
    kept.save(path)
    again = LearnedCosts.load(path, device="cuda H200", build="torch 2.13")
    assert again.residuals.to_json() == kept.residuals.to_json()
    assert upper(again.residuals) == upper(kept.residuals)
    for device, build in (("cuda H200", "torch 2.14"), ("cuda T4", "torch 2.13")):
        other = LearnedCosts.load(path, device=device, build=build)
        assert upper(other.residuals) == upper(LearnedMargins(device))


@pytest.mark.parametrize(
    "content", [None, "{", '{"format": 1}', '{"format": 3, "device": "cpu", "build": ""}']
)
def test_a_file_that_is_not_understood_costs_learning_anew_and_no_start(
    tmp_path: Path, content: str | None
) -> None:
    path = tmp_path / "learned.json"
    if content is not None:
        path.write_text(content)
    assert upper(LearnedCosts.load(path, device="cpu", build="").residuals) == upper(LearnedMargins("cpu"))
