"""Jobs that are handed in and jobs that are queued again meet the limits of the queue together."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from app.jobs import JobSpec, JobStatus
from app.store import JobStore, QueueFull, Submission

IMAGE = b"image"
OpenStore = Callable[..., JobStore]
MakeSpec = Callable[..., JobSpec]


def submitted(store: JobStore, spec: JobSpec, **fields: Any) -> str:
    return store.submit(Submission(spec, IMAGE, spec.fingerprint(IMAGE), **fields))[0].id


def canceled(store: JobStore, spec: JobSpec, count: int) -> list[str]:
    ids = []
    for _ in range(count):
        ids.append(submitted(store, spec, owner="a"))
        store.cancel(ids[-1])
    return ids


def accepted(attempt: Callable[[], object]) -> bool:
    try:
        attempt()
    except QueueFull:
        return False
    return True


@pytest.mark.parametrize(
    "rules", [{"max_queued": 2}, {"max_queued_of_owner": 2}], ids=["of all", "of one key"]
)
def test_what_is_queued_at_once_by_several_processes_does_not_pass_a_limit_together(
    open_store: OpenStore, make_spec: MakeSpec, rules: dict[str, int]
) -> None:
    stores = [open_store(**rules) for _ in range(4)]
    spec = make_spec()
    jobs = canceled(stores[0], spec, 4)
    attempts: list[Callable[[], object]] = [
        *(
            lambda store=store, job=job: store.queue_again(job)
            for store, job in zip(stores, jobs, strict=True)
        ),
        *(lambda store=store: submitted(store, spec, owner="a") for store in stores),
    ]
    with ThreadPoolExecutor(len(attempts)) as pool:
        assert sum(pool.map(accepted, attempts)) == 2
    assert stores[0].counts()[JobStatus.QUEUED] == 2


def test_the_limit_of_a_key_is_its_own_for_jobs_that_are_queued_again(
    open_store: OpenStore, make_spec: MakeSpec
) -> None:
    store = open_store(max_queued_of_owner=1)
    jobs = canceled(store, make_spec(), 3)
    store.queue_again(jobs[0])
    with pytest.raises(QueueFull) as refusal:
        store.queue_again(jobs[1])
    assert (refusal.value.queued, refusal.value.limit, refusal.value.owner) == (1, 1, "a")
    store.queue_again(jobs[1], max_queued_of_owner=2)
    assert store.get(jobs[2]).status is JobStatus.CANCELED
    submitted(store, make_spec(), owner="b")


def test_a_job_that_its_worker_gives_back_needs_no_room(open_store: OpenStore, make_spec: MakeSpec) -> None:
    store = open_store(max_queued=1)
    store.add(make_spec(), IMAGE)
    claim = store.claim("w")
    assert claim is not None
    store.add(make_spec(), IMAGE)
    assert store.release(claim.job.id, claim.token, "drained", refund=True)
    assert store.counts()[JobStatus.QUEUED] == 2
