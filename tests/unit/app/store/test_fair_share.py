"""Keys share the queue by the time their jobs take; within a key, and without keys, nothing changes."""

from collections.abc import Callable
from typing import Any

import pytest

from app.jobs import Job, JobSpec, JobStatus
from app.store import JobStore, Submission

GREEDY, MODEST, THIRD = "a" * 32, "b" * 32, "c" * 32


@pytest.fixture
def queue(store: JobStore, make_spec: Callable[..., JobSpec]) -> Callable[..., Job]:
    def add(owner: str | None, seconds: float | None, **fields: Any) -> Job:
        spec = make_spec(**fields)
        submission = Submission(spec, b"x", spec.fingerprint(b"x"), owner=owner, expected_seconds=seconds)
        return store.submit(submission)[0]

    return add


def run_next(store: JobStore) -> Job:
    claim = store.claim("w")
    assert claim is not None
    store.finish(claim.job.id, claim.token, status=JobStatus.SUCCEEDED, result={})
    return claim.job


def order(store: JobStore, jobs: int) -> str:
    """The owners of the next jobs, by their letter."""
    return "".join((run_next(store).owner or "-")[0] for _ in range(jobs))


def test_one_job_beside_fifty_of_another_key_starts_within_the_next_claims(
    store: JobStore, queue: Callable[..., Job], clock: Any
) -> None:
    for _ in range(50):
        queue(GREEDY, 60.0)
    running = store.claim("w")
    assert running is not None
    clock.now += 20.0
    job = queue(MODEST, 60.0)
    assert job.queue_position is not None
    assert job.queue_position <= 2
    store.finish(running.job.id, running.token, status=JobStatus.SUCCEEDED, result={})
    assert "b" in order(store, 2)


def test_it_is_so_after_hours_of_the_other_keys_jobs_and_for_every_newcomer(
    store: JobStore, queue: Callable[..., Job], clock: Any
) -> None:
    for _ in range(50):
        queue(GREEDY, 60.0)
    for _ in range(20):  # each takes far longer than expected
        clock.now += 1000.0
        run_next(store)
    for owner in (MODEST, THIRD):
        clock.now += 1000.0
        queue(owner, 60.0)
        assert owner[0] in order(store, 3)


def test_keys_that_both_wait_take_turns_and_keep_their_own_order(
    store: JobStore, queue: Callable[..., Job], clock: Any
) -> None:
    own: dict[str, list[str]] = {GREEDY: [], MODEST: []}
    for owner in (GREEDY, MODEST):
        for _ in range(6):
            clock.now += 0.1
            own[owner].append(queue(owner, 60.0).id)
    ran = [run_next(store) for _ in range(12)]
    assert abs(sum(job.owner == GREEDY for job in ran[:6]) - 3) <= 1
    for owner, ids in own.items():
        assert [job.id for job in ran if job.owner == owner] == ids


def test_shares_are_of_time_and_not_of_jobs(store: JobStore, queue: Callable[..., Job]) -> None:
    for _ in range(4):
        queue(GREEDY, 600.0)
    for _ in range(40):
        queue(MODEST, 60.0)
    ran = order(store, 22)
    assert 17 <= ran.count("b") <= 20


def test_priority_orders_the_jobs_of_a_key_and_still_helps_among_keys(
    store: JobStore, queue: Callable[..., Job], clock: Any
) -> None:
    for _ in range(20):
        queue(GREEDY, 60.0)
    queue(MODEST, 60.0)
    clock.now += 1.0
    urgent = queue(GREEDY, 60.0, priority=5)
    assert run_next(store).id == urgent.id
    late = queue(MODEST, 60.0, priority=-5)
    assert late.queue_position is not None
    assert late.queue_position > 20


def test_the_head_start_of_a_priority_is_bounded(store: JobStore, queue: Callable[..., Job]) -> None:
    for _ in range(50):
        queue(GREEDY, 600.0, priority=2)
    queue(MODEST, 600.0)
    ran = order(store, 6)
    assert "b" in ran


def test_a_key_that_cancels_gets_its_time_back(store: JobStore, queue: Callable[..., Job]) -> None:
    jobs = [queue(GREEDY, 600.0) for _ in range(10)]
    for job in jobs[1:]:
        store.cancel(job.id)
    for _ in range(4):
        queue(MODEST, 600.0)
    queue(GREEDY, 600.0)
    assert order(store, 4).count("a") == 2


def test_without_expected_seconds_the_order_is_that_of_arrival(
    store: JobStore, queue: Callable[..., Job], clock: Any
) -> None:
    ids = []
    for owner in (GREEDY, GREEDY, MODEST, None, GREEDY):
        clock.now += 1.0
        ids.append(queue(owner, None).id)
    clock.now += 1.0
    first = queue(GREEDY, None, priority=1).id
    assert [run_next(store).id for _ in range(6)] == [first, *ids]


def test_a_job_that_is_queued_again_takes_its_place_in_its_keys_line(
    store: JobStore, queue: Callable[..., Job]
) -> None:
    again = queue(GREEDY, 60.0)
    store.cancel(again.id)
    for _ in range(10):
        queue(GREEDY, 60.0)
    store.queue_again(again.id, why="retry")
    queue(MODEST, 60.0)
    ran = [run_next(store) for _ in range(12)]
    assert [job.owner for job in ran].index(MODEST) <= 2
    assert ran[-1].id == again.id


def test_a_job_that_is_held_back_moves_no_other_job_of_its_key_or_of_newcomers(
    open_store: Callable[..., JobStore], make_spec: Callable[..., JobSpec], clock: Any
) -> None:
    store = open_store(max_attempts=1)

    def add(owner: str) -> Job:
        spec = make_spec()
        return store.submit(
            Submission(spec, b"x", spec.fingerprint(b"x"), owner=owner, expected_seconds=60.0)
        )[0]

    deadly = add(MODEST)
    assert store.claim("host/cpu/1") is not None
    store.forget_worker("host/cpu/1", "worker_crashed")
    assert store.get(deadly.id).stage == "held"
    for _ in range(6):
        add(GREEDY)
    add(MODEST)
    assert "b" in order(store, 3), "its healthy job waits behind nobody's"
    assert order(store, 4) == "aaaa"
    tried = store.claim("host/cpu/1")
    assert tried is not None
    assert tried.job.id == deadly.id
    clock.now += 1.0
    own = store.get(deadly.id)
    newcomers = [add(owner) for owner in (THIRD, GREEDY, MODEST)]
    assert store.release(own.id, own.token, "worker_stopped")
    assert {run_next(store).id for _ in newcomers} == {job.id for job in newcomers}
