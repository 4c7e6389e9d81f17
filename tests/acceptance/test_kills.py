"""The campaign of `tests/bench/kills.py`, in small: worker and service are killed while jobs run."""

from pathlib import Path

from tests.bench import kills


def test_every_job_gets_its_video_however_often_its_worker_and_its_service_are_killed(
    built_model: Path,
) -> None:
    run = kills.run(seed=1, model=built_model, jobs=4, kills=2)
    assert (run.videos, run.lost) == (4, [])
    assert run.kills == {"worker": 1, "supervisor": 1}
