"""Estimates where some workers denoise and others decode count each job with the workers that take it."""

from collections.abc import Callable
from typing import Any

import pytest

from app.jobs import Event, JobSpec, Stage, WorkerRow
from app.scheduling.eta import RunTimes, WaitingTimes
from app.scheduling.eta_ranges import WaitingRanges
from app.store import JobStore

MakeSpec = Callable[..., JobSpec]
IMAGE = b"\xff\xd8 a picture"


def worker(worker_id: str, role: str, state: Any = "active") -> WorkerRow:
    return WorkerRow(worker_id, {"name": "cpu", "role": role, "loaded_model": "tiny"}, None, state, 0.0, 0.0)


@pytest.fixture
def run_times() -> RunTimes:
    """One job has taken 6 s to denoise on one worker and 4 s to decode on another."""
    data = {
        "outcome": "succeeded",
        "model": "tiny",
        "durations": {"decoding": 4.0},
        "earlier_durations": {"denoising": 6.0},
        "denoise": {"steps": 4, "steps_computed": 4},
        "video": {"frames": 25, "width": 256, "height": 256},
    }
    times = RunTimes()
    times.apply([Event(1, "x", "finished", 0.0, data)])
    return times


class Estimates:
    def __init__(self, store: JobStore, run_times: RunTimes, workers: list[WorkerRow]) -> None:
        asked: Any = (run_times, store, lambda: workers, lambda _model: False)
        self.store, self.times, self.ranges = store, WaitingTimes(*asked), WaitingRanges(*asked)

    def of(self, job_id: str) -> float | None:
        job = self.store.get(job_id)
        seconds, (found,) = self.times.seconds_for_job(job), self.ranges.for_jobs([job])
        assert (seconds is None) is (found is None)
        assert seconds is None or found is None or found.low <= seconds <= found.high
        return seconds


@pytest.fixture
def queue(store: JobStore, make_spec: MakeSpec, clock: Any) -> tuple[JobStore, list[str]]:
    """A denoised job and two others, in that order."""
    jobs = []
    for _ in range(3):
        clock.now += 1
        jobs.append(store.add(make_spec(), IMAGE).id)
    claim = store.claim("a")
    assert claim is not None
    store.checkpoint(jobs[0], claim.token, "latents", {"steps": 4})
    store.hand_over(jobs[0], claim.token, data={"to": "b"}, durations={"denoising": 6.0})
    return store, jobs


@pytest.mark.parametrize(
    ("workers", "expected"),
    [
        pytest.param([worker("a", "denoise"), worker("b", "decode")], [4.0, 16.0, 22.0], id="roles"),
        pytest.param([worker("a", "both"), worker("b", "decode")], [4.0, 16.0, 22.0], id="one does both"),
        pytest.param([worker("a", "both")], [4.0, 20.0, 30.0], id="one worker"),
        pytest.param([worker("a", "denoise")], [4.0, 20.0, 30.0], id="nobody decodes for it"),
        pytest.param([worker("b", "decode")], [4.0, None, None], id="nobody denoises"),
        pytest.param([worker("b", "decode", "paused")], [None, None, None], id="all are paused"),
    ],
)
def test_a_job_waits_for_workers_that_take_it(
    queue: tuple[JobStore, list[str]], run_times: RunTimes, workers: list[WorkerRow], expected: list[Any]
) -> None:
    store, jobs = queue
    estimates = Estimates(store, run_times, workers)
    assert [estimates.of(each) for each in jobs] == expected


def test_a_decode_that_runs_elsewhere_counts_alone(
    queue: tuple[JobStore, list[str]], run_times: RunTimes
) -> None:
    store, jobs = queue
    estimates = Estimates(store, run_times, [worker("a", "denoise"), worker("b", "decode")])
    claim = store.claim("b")
    assert claim is not None
    assert claim.job.id == jobs[0]
    store.progress(jobs[0], claim.token, stage=Stage.LOADING, progress=0.01)
    assert estimates.of(jobs[0]) == 4.0
    store.progress(jobs[0], claim.token, stage=Stage.DECODING, progress=0.885)
    assert estimates.of(jobs[0]) == 2.0
