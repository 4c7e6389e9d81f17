"""A running job gives its worker to a queued one of higher priority, in one transaction."""

from collections.abc import Callable
from typing import Any

import pytest

from app.jobs import Claim, JobSpec, JobStatus, Stage
from app.store import JobStore
from app.store.backfill import MOST_PREEMPTIONS, Running

IMAGE = b"\xff\xd8 a picture"
MakeSpec = Callable[..., JobSpec]
MODELS = ["tiny"]


def added(store: JobStore, make_spec: MakeSpec, priority: int, **fields: Any) -> str:
    return store.add(make_spec(priority=priority), IMAGE, **fields).id


def claimed(store: JobStore, worker: str = "w") -> Claim:
    claim = store.claim(worker, models=MODELS)
    assert claim is not None
    return claim


def preempt(store: JobStore, claim: Claim, by: str, worker: str = "w") -> Claim | None:
    return store.preempt(claim.job.id, claim.token, worker, by=by, step=12, steps=30)


def test_the_first_fitting_job_of_strictly_higher_priority_is_urgent(
    store: JobStore, make_spec: MakeSpec
) -> None:
    asked = {"models": MODELS, "capacity_bytes": 50}
    added(store, make_spec, 0)
    added(store, make_spec, 5, needed_bytes=51)
    store.add(make_spec(priority=5, model="another"), IMAGE)
    assert store.urgent(0, **asked) is None
    first, _ = added(store, make_spec, 4, needed_bytes=50), added(store, make_spec, 4)
    found = store.urgent(0, **asked)
    assert found is not None
    assert (found.id, found.priority, found.needed_bytes) == (first, 4, 50)
    assert store.urgent(4, **asked) is None


def test_the_device_goes_to_the_job_it_was_meant_for_and_the_other_keeps_its_place_and_attempts(
    store: JobStore, make_spec: MakeSpec, clock: Any
) -> None:
    low = added(store, make_spec, 0)
    later = added(store, make_spec, 0)
    running = claimed(store)
    assert running.job.id == low
    clock.now += 10
    high = added(store, make_spec, 5)
    now = preempt(store, running, high)
    assert now is not None
    assert (now.job.id, now.job.status, now.job.worker_id) == (high, JobStatus.RUNNING, "w")
    job = store.get(low)
    assert (job.status, job.stage, job.attempts, job.queue_position) == ("queued", Stage.QUEUED, 0, 1)
    assert job.preempted == {"times": 1, "step": 12, "steps": 30}
    events = store.events_after(0, job_id=low)
    assert [event.kind for event in events][-2:] == ["preempted", "requeued"]
    assert events[-2].data == {"priority": 5, "step": 12, "steps": 30}, "nothing tells whose job it is"
    assert events[-1].data["reason"] == "preempted"
    assert not store.event(low, running.token, "progress", {}), "the token of before is no longer valid"
    assert store.finish(high, now.token, status=JobStatus.SUCCEEDED)
    assert claimed(store).job.id == low, "before a later one"
    assert store.get(later).status is JobStatus.QUEUED


def test_a_job_gives_way_at_most_twice_and_again_after_a_retry(store: JobStore, make_spec: MakeSpec) -> None:
    low = added(store, make_spec, 0)
    for _ in range(MOST_PREEMPTIONS):
        running, high = claimed(store), added(store, make_spec, 5)
        now = preempt(store, running, high)
        assert now is not None
        assert store.finish(high, now.token, status=JobStatus.SUCCEEDED)
    running, high = claimed(store), added(store, make_spec, 5)
    assert running.job.id == low
    assert preempt(store, running, high) is None
    assert store.get(low).status is JobStatus.RUNNING
    assert store.finish(low, running.token, status=JobStatus.FAILED)
    assert store.queue_again(low, why="retry").preempted is None


@pytest.mark.parametrize("case", ["claimed", "canceled", "no higher", "lost", "paused", "asked to cancel"])
def test_a_job_goes_on_if_the_other_is_gone_or_it_may_not_give_way(
    store: JobStore, make_spec: MakeSpec, case: str
) -> None:
    added(store, make_spec, 0)
    running = claimed(store)
    high = added(store, make_spec, 0 if case == "no higher" else 5)
    store.register_worker("w", {"name": "cpu"})
    if case == "claimed":
        assert claimed(store, "another").job.id == high
    if case == "canceled":
        store.cancel(high)
    if case == "asked to cancel":
        store.cancel(running.job.id)
    store.pause_worker("w", paused=case == "paused")
    if case == "lost":
        running = Claim(running.job, running.token + 1)
    assert preempt(store, running, high) is None
    job = store.get(running.job.id)
    assert (job.status, job.preempted) == (JobStatus.RUNNING, None)


def test_running_jobs_tell_how_far_they_are(store: JobStore, make_spec: MakeSpec) -> None:
    added(store, make_spec, 0)
    claim = claimed(store)
    store.progress(claim.job.id, claim.token, stage=Stage.DENOISING, progress=0.5)
    assert store.running() == [Running("w", 0.5, None)]
    assert store.running()[0].download_seconds == 0.0


@pytest.mark.parametrize("seconds_left", [600.0, None])
def test_a_running_job_tells_how_long_it_still_downloads(
    store: JobStore, make_spec: MakeSpec, seconds_left: float | None
) -> None:
    added(store, make_spec, 0)
    claim = claimed(store)
    store.progress(claim.job.id, claim.token, stage=Stage.DOWNLOADING, progress=0.0)
    assert store.running()[0].download_seconds is None
    told = {"download": {"seconds_left": seconds_left}}
    store.progress(claim.job.id, claim.token, stage=Stage.DOWNLOADING, progress=0.0, data=told)
    assert store.running()[0].download_seconds == seconds_left
    store.progress(claim.job.id, claim.token, stage=Stage.LOADING, progress=0.01)
    assert store.running()[0].download_seconds == 0.0
