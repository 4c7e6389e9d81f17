"""The fault campaign of `tests/bench/faults.py`, in small: one fault of each kind while ten jobs run."""

from pathlib import Path

from tests.bench import faults


def test_nothing_is_lost_or_done_twice_while_everything_breaks(built_model: Path) -> None:
    # Folders that go away have tests of their own (`test_lost_folders.py`), and suspended processes, too.
    kinds = dict.fromkeys(("kill_worker", "kill_api", "kill_supervisor", "lock_database", "fill_disk"), 1)
    report = faults.campaign(10, faults=5, model=built_model, lock_seconds=(2,), kinds=kinds)
    assert report.jobs >= 10
    assert report.clean, report
    assert set(report.faults) | set(report.skipped) >= set(kinds)
