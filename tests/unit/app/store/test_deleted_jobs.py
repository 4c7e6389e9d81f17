"""Jobs that their client deleted, over the database that `database_url` names."""

from collections.abc import Callable
from typing import Any

import pytest

from app.jobs import JobSpec, JobStatus
from app.store import JobStore, ResultExpired, Submission


def test_a_deleted_job_expires_now_or_as_soon_as_it_has_ended_and_leaves_lists_without_deleted_ones(
    store: JobStore, make_spec: Callable[..., JobSpec], clock: Any
) -> None:
    done, running = (store.add(make_spec(), b"image") for _ in range(2))
    tokens = [claim.token for claim in (store.claim("v"), store.claim("w")) if claim is not None]
    queued = store.add(make_spec(), b"image")
    store.finish(done.id, tokens[0], status=JobStatus.SUCCEEDED, result={"frames": 25})
    assert [store.delete(job.id) for job in (running, done, done)] == [True, True, False]
    assert [store.get(job.id).deleted for job in (queued, running, done)] == [False, True, True]
    assert (store.get(done.id).expired, store.get(running.id).expired) == (True, False)
    assert [job.id for job in store.page(with_deleted=False)] == [queued.id]
    assert len(store.page()) == 3
    removed: list[str] = []
    clock.now += 1.0
    assert store.expire_results(removed.append) == []
    store.finish(running.id, tokens[1], status=JobStatus.SUCCEEDED, result={"frames": 25})
    assert store.expire_results(removed.append) == [running.id]
    clock.now += 100.0
    assert store.expire_results(removed.append) == []
    assert set(removed) == {running.id, done.id}
    assert store.get(running.id).result is not None, "the history stays"


def test_a_deleted_job_is_not_queued_again_before_its_result_is_marked_as_expired(
    store: JobStore, make_spec: Callable[..., JobSpec]
) -> None:
    job, claim = store.add(make_spec(), b"image"), store.claim("w")
    assert claim is not None
    store.delete(job.id)
    store.finish(job.id, claim.token, status=JobStatus.SUCCEEDED, result={"frames": 25})
    with pytest.raises(ResultExpired):
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
