"""What is learned beyond live bytes, from observations given by hand."""

from pathlib import Path

import pytest

from adaptive.residuals import COLD_MARGINS, Residuals
from adaptive.types import Strategy

MIB = 2**20
LIVE = 1000 * MIB
BATCHED, CHUNKED = Strategy.BATCHED, Strategy.CHUNKED


def upper(residuals: Residuals, strategy: Strategy = BATCHED) -> int:
    return residuals.estimate("ltx", "float32", strategy, LIVE).upper_bytes


def observe(residuals: Residuals, ratios: list[float], strategy: Strategy = BATCHED) -> None:
    for ratio in ratios:
        residuals.observe("ltx", "float32", strategy, live_bytes=LIVE, needed_bytes=round(LIVE * ratio))


@pytest.mark.parametrize("device", ["cpu", "cuda:0"])
def test_before_anything_is_learned_the_margin_is_that_of_the_kind_of_device(device: str) -> None:
    cold = COLD_MARGINS["cpu" if device == "cpu" else "cuda"]
    estimate = Residuals(device).estimate("ltx", "float32", BATCHED, LIVE)
    assert estimate.live_bytes == LIVE
    assert estimate.upper_bytes == round(LIVE * cold.upper_ratio) + cold.constant_bytes
    assert LIVE < estimate.expected_bytes < estimate.upper_bytes


def test_observations_tighten_the_bound_but_never_below_the_highest_seen() -> None:
    residuals = Residuals("cuda:0")
    cold = upper(residuals)
    observe(residuals, [1.10, 1.12, 1.11, 1.10, 1.13])
    assert LIVE * 1.13 <= upper(residuals) < cold


def test_observations_above_the_bound_widen_it_at_once() -> None:
    residuals = Residuals("cpu")
    observe(residuals, [2.5])
    assert upper(residuals) > LIVE * 2.5


def test_each_strategy_learns_for_itself() -> None:
    residuals = Residuals("cpu")
    before = upper(residuals, CHUNKED)
    observe(residuals, [3.0], BATCHED)
    assert upper(residuals, CHUNKED) == before


def test_an_out_of_memory_is_a_lower_bound_that_enough_successes_lift_again() -> None:
    residuals = Residuals("cpu")
    observe(residuals, [1.1] * 5)
    residuals.out_of_memory("ltx", "float32", BATCHED, live_bytes=LIVE, free_bytes=2 * LIVE)
    assert upper(residuals) > 2 * LIVE
    observe(residuals, [1.1] * 5)
    assert upper(residuals) < 1.5 * LIVE


def test_a_failure_with_plenty_free_does_not_shut_a_strategy_out() -> None:
    residuals = Residuals("cpu")
    residuals.out_of_memory("ltx", "float32", BATCHED, live_bytes=LIVE, free_bytes=400 * LIVE)
    assert upper(residuals) < 6 * LIVE
    observe(residuals, [1.1] * 5, CHUNKED)
    assert upper(residuals) < 1.6 * LIVE


def test_what_was_learned_survives_a_restart_on_the_same_build_only(tmp_path: Path) -> None:
    residuals = Residuals("cuda H200", "torch 2.13")
    observe(residuals, [1.2, 1.3])
    residuals.out_of_memory("ltx", "float32", CHUNKED, live_bytes=LIVE, free_bytes=3 * LIVE)
    path = tmp_path / "residuals.json"
    residuals.save(path)
    again = Residuals.load(path, device="cuda H200", build="torch 2.13")
    assert again.to_json() == residuals.to_json()
    assert upper(again) == upper(residuals)
    other = Residuals.load(path, device="cuda H200", build="torch 2.14")
    assert upper(other) == upper(Residuals("cuda H200"))
    assert upper(Residuals.load(tmp_path / "none.json", device="cpu", build="")) == upper(Residuals("cpu"))
