"""The fault campaign of `tests/bench/faults.py`, in small: one fault of each kind while ten jobs run."""

from pathlib import Path

from tests.bench import faults


def test_nothing_is_lost_or_done_twice_while_everything_breaks(built_model: Path) -> None:
    report = faults.campaign(
        10, faults=9, model=built_model, lock_seconds=(2,), away_seconds=(1,), suspends=False
    )
    assert report.jobs >= 10
    assert report.clean, report
    assert set(report.faults) | set(report.skipped) == set(faults.WEIGHTS)
