"""Events of jobs that ended long ago are deleted, in parts; those of all other jobs stay."""

from collections.abc import Callable
from typing import Any

import pytest
from sqlalchemy import text

from app.jobs import JobSpec, JobStatus
from app.store import JobStore
from app.store.upkeep.counters import COUNTERS

KEEP_SECONDS = 100.0
HOLDER = "me"


@pytest.fixture
def exported(store: JobStore) -> JobStore:
    """A store in which this test is the exporter."""
    store.hold_exports([COUNTERS], HOLDER, process="boot/pid/1/1", seconds=1e6)
    return store


def retire(store: JobStore, **changes: Any) -> int:
    """Delete all that may go; return how many events went."""
    wanted = {"counted": store.last_event(), "keep_seconds": KEEP_SECONDS, "limit": 3, **changes}
    deleted, after = 0, 0
    while True:
        retired = store.retire_events(HOLDER, after=after, **wanted)
        deleted += retired.deleted
        if retired.next_after is None:
            return deleted
        assert retired.next_after > after
        after = retired.next_after


def run(store: JobStore, spec: JobSpec) -> str:
    job = store.add(spec, b"image")
    claim = store.claim("w")
    assert claim is not None
    store.finish(claim.job.id, claim.token, status=JobStatus.SUCCEEDED)
    return str(job.id)


def jobs_with_events(store: JobStore) -> set[str]:
    return {event.job_id for event in store.events_after(0)}


def test_events_of_jobs_that_wait_run_or_ended_lately_stay(
    exported: JobStore, clock: Any, make_spec: Callable[..., JobSpec]
) -> None:
    old, again = run(exported, make_spec()), run(exported, make_spec())
    running = exported.add(make_spec(), b"image").id
    exported.claim("w")
    waiting = exported.add(make_spec(), b"image").id
    clock.now += KEEP_SECONDS + 1
    exported.queue_again(again)
    young = run(exported, make_spec(priority=10))
    before = exported.events_after(0)
    assert retire(exported) == 3
    after = exported.events_after(0)
    assert after == [event for event in before if event.job_id != old], "and the others keep their numbers"
    assert jobs_with_events(exported) == {again, running, waiting, young}
    assert exported.get(old).status is JobStatus.SUCCEEDED
    assert retire(exported) == 0


def test_what_is_added_to_an_ended_job_later_goes_with_it_and_so_do_events_of_jobs_that_are_gone(
    exported: JobStore, clock: Any, make_spec: Callable[..., JobSpec]
) -> None:
    job_id, gone = run(exported, make_spec()), run(exported, make_spec())
    clock.now += KEEP_SECONDS + 1
    exported.discard(job_id)
    for table, column in (("job_pictures", "job_id"), ("jobs", "id")):
        statement = text(f"delete from {table} where {column} = :id")
        exported._database.run(lambda tx, statement=statement: tx.execute(statement, {"id": gone}).rowcount)
    assert retire(exported) == 6
    assert [event.kind for event in exported.events_after(0)] == ["expired"]
    clock.now += KEEP_SECONDS + 1
    assert retire(exported) == 1


def test_numbers_go_on_after_the_last_event_was_deleted_and_the_last_deleted_one_is_known(
    exported: JobStore, clock: Any, make_spec: Callable[..., JobSpec]
) -> None:
    assert exported.last_retired_event() == 0
    run(exported, make_spec())
    last = exported.last_event()
    clock.now += KEEP_SECONDS + 1
    assert retire(exported) == 3
    assert exported.last_retired_event() == last
    run(exported, make_spec())
    assert [event.seq for event in exported.events_after(0)] == [last + 1, last + 2, last + 3]


def test_only_the_exporter_deletes_and_only_what_was_counted(
    exported: JobStore, clock: Any, make_spec: Callable[..., JobSpec]
) -> None:
    run(exported, make_spec())
    first = exported.events_after(0)[0].seq
    clock.now += KEEP_SECONDS + 1
    assert exported.retire_events("another", counted=10**6, keep_seconds=KEEP_SECONDS).deleted == 0
    assert retire(exported, counted=first) == 1
    assert [event.seq for event in exported.events_after(0)] == [first + 1, first + 2]
