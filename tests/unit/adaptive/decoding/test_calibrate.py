"""Measuring every rung of a small VAE on this machine."""

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from adaptive.decoding.calibrate import Measurement, as_markdown, calibrate, plot
from adaptive.device.probe import open_probe
from adaptive.memory.learned_costs import LearnedCosts
from adaptive.memory.profile import MemoryProfile
from adaptive.testing import small_ltx_vae
from adaptive.types import LatentShape, Strategy


@pytest.fixture(scope="module")
def vae() -> Any:
    return small_ltx_vae()


@pytest.fixture
def profile(ltx_profile: MemoryProfile) -> MemoryProfile:
    """Stored, as a service has it: tracing one would take longer than all the decodes."""
    return replace(ltx_profile, traits=replace(ltx_profile.traits, latent_channels=8))


class Enough(Exception):
    """Ends a calibration early."""


def test_every_strategy_is_measured_and_from_then_on_time_is_predicted(
    vae: Any, profile: MemoryProfile, tmp_path: Path
) -> None:
    learned_costs = LearnedCosts.none("cpu", "")
    found: list[Measurement] = []

    def note(measured: Measurement) -> None:
        found.append(measured)
        if {each.strategy for each in found} >= {Strategy.BATCHED, Strategy.CHUNKED, Strategy.PER_FRAME}:
            raise Enough

    with pytest.raises(Enough):
        calibrate(vae, profile, open_probe("cpu"), learned_costs, limit_seconds=120, on_measured=note)
    law = learned_costs.speeds.model(profile)
    assert law is not None
    measured = found[0]
    assert 0.2 < law.seconds(measured.shape, measured.frames_per_chunk) / measured.seconds < 5
    table = as_markdown(found, "title")
    assert table.count("\n| ") == len(found) + 1
    plot(found, tmp_path / "plot.png", "title")
    assert (tmp_path / "plot.png").read_bytes()[:4] == b"\x89PNG"


def test_with_no_time_nothing_is_measured_beyond_the_warm_up(vae: Any, profile: MemoryProfile) -> None:
    learned_costs = LearnedCosts.none("cpu", "")
    found = calibrate(vae, profile, open_probe("cpu"), learned_costs, limit_seconds=0)
    assert found == []
    assert learned_costs.speeds.model(profile) is None


def test_times_of_one_tiny_shape_alone_predict_nothing(
    vae: Any, profile: MemoryProfile, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 0.0
    monkeypatch.setattr("adaptive.decoding.calibrate.time.monotonic", lambda: now)

    def out_of_time(_: Measurement) -> None:
        nonlocal now
        now += 1000.0

    learned_costs = LearnedCosts.none("cpu", "")
    probe = open_probe("cpu")
    (only,) = calibrate(vae, profile, probe, learned_costs, limit_seconds=120, on_measured=out_of_time)
    assert learned_costs.speeds.model(profile) is None
    learned_costs.speeds.observe(profile, LatentShape(1, 8, 9, 8, 8), 9, 2.0)
    calibrate(vae, profile, probe, learned_costs, limit_seconds=120, on_measured=out_of_time)
    assert learned_costs.speeds.observations(profile) == 2, "a real decode's time is kept"
    assert only.seconds > 0


def test_every_strategy_is_measured_once_although_time_is_over(vae: Any, profile: MemoryProfile) -> None:
    found = calibrate(
        vae, profile, open_probe("cpu"), LearnedCosts.none("cpu", ""), limit_seconds=0, every_strategy=True
    )
    assert [each.strategy for each in found] == [Strategy.BATCHED, Strategy.CHUNKED, Strategy.PER_FRAME]
    assert len({each.shape for each in found}) == 1, "larger videos only where there is time"


def test_without_matplotlib_the_plot_names_the_extra(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    one = Measurement(LatentShape(1, 8, 3, 4, 4), 3, 1, 1, 1, 1.0)
    with pytest.raises(ModuleNotFoundError, match=r"framefit\[calibrate\]"):
        plot([one], tmp_path / "plot.png", "title")
