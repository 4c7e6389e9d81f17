"""Jobs that their client deleted, over the database that `database_url` names."""

from collections.abc import Callable
from typing import Any

import pytest

from app.jobs import JobSpec, JobStatus
from app.store import JobDeleted, JobStore, Submission
from app.store.upkeep import deletion


def test_a_deleted_job_is_erased_once_it_has_ended_and_leaves_lists_without_deleted_ones(
    store: JobStore, make_spec: Callable[..., JobSpec], clock: Any
) -> None:
    done, running = (store.add(make_spec(), b"image") for _ in range(2))
    tokens = [claim.token for claim in (store.claim("v"), store.claim("w")) if claim is not None]
    queued = store.add(make_spec(), b"image")
    store.finish(done.id, tokens[0], status=JobStatus.SUCCEEDED, result={"frames": 25})
    assert [store.delete(job.id) for job in (running, done, done)] == [True, True, False]
    assert [store.get(job.id).delete_requested for job in (queued, running, done)] == [False, True, True]
    assert [job.id for job in store.page(with_deleted=False)] == [queued.id]
    assert len(store.page()) == 3, "the running one still has its worker"
    removed: list[str] = []
    clock.now += 1.0
    assert store.erase_deleted(removed.append) == [], "a response may be about to open a file"
    clock.now += deletion.GRACE_SECONDS
    assert store.erase_deleted(removed.append) == [done.id]
    store.finish(running.id, tokens[1], status=JobStatus.SUCCEEDED, result={"frames": 25})
    assert store.erase_deleted(removed.append) == [running.id]
    assert store.erase_deleted(removed.append) == []
    assert removed == [done.id, running.id]
    assert store.get(running.id).result is None


def test_a_deleted_job_is_not_queued_again(store: JobStore, make_spec: Callable[..., JobSpec]) -> None:
    job, claim = store.add(make_spec(), b"image"), store.claim("w")
    assert claim is not None
    store.delete(job.id)
    store.finish(job.id, claim.token, status=JobStatus.SUCCEEDED, result={"frames": 25})
    with pytest.raises(JobDeleted):
        store.queue_again(job.id)
    assert store.get(job.id).status is JobStatus.SUCCEEDED


def test_the_key_of_a_deleted_job_makes_a_new_one(store: JobStore, make_spec: Callable[..., JobSpec]) -> None:
    spec = make_spec()
    same = Submission(spec, b"image", spec.fingerprint(b"image"), idempotency_key="a key")
    first, _ = store.submit(same)
    claim = store.claim("w")
    assert claim is not None
    store.finish(first.id, claim.token, status=JobStatus.SUCCEEDED, result={"frames": 25})
    assert store.submit(same)[0].id == first.id
    store.delete(first.id)
    second, is_new = store.submit(same)
    assert (is_new, second.id != first.id) == (True, True), "not one that its client can no longer get"
    assert store.submit(same)[0].id == second.id
