"""What holds for PostgreSQL alone: many hosts write at once, and time and order come from the server."""

import multiprocessing
import os
import random
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from sqlalchemy import event as sqlalchemy_event
from sqlalchemy import text

from app.jobs import Event, JobSpec, JobStatus
from app.store import IdempotencyConflict, JobStore, QueueFull, Rules, Submission
from app.store.database import postgresql
from app.store.rows import append_event
from app.store.transaction import Transaction

IMAGE = b"\xff\xd8 a picture"
MakeSpec = Callable[..., JobSpec]
OpenStore = Callable[..., JobStore]


@pytest.fixture
def database_url(empty_postgres: str) -> str:
    return empty_postgres


@pytest.fixture
def server_clock(database_url: str) -> Iterator[OpenStore]:
    """Opens stores that take the time from the server."""
    opened: list[JobStore] = []

    def open_one(**rules: object) -> JobStore:
        store = JobStore(database_url, rules=Rules(**rules))  # type: ignore[arg-type]
        opened.append(store)
        store.migrate()
        return store

    yield open_one
    for store in opened:
        store.close()


def test_a_transaction_that_takes_long_keeps_no_other_from_writing(
    open_store: OpenStore, make_spec: MakeSpec
) -> None:
    slow, quick = open_store(), open_store()
    entered, leave = threading.Event(), threading.Event()

    def hesitate(tx: Transaction) -> None:
        append_event(tx, "a job", "accepted", {})
        entered.set()
        assert leave.wait(120)

    hesitating = threading.Thread(target=slow._database.run, args=(hesitate,))
    hesitating.start()
    assert entered.wait(120)
    job = quick.add(make_spec(), IMAGE)
    claim = quick.claim("w")
    assert claim is not None
    seen = quick.events_after(0)
    assert [event.kind for event in seen] == ["accepted", "claimed"], "an open transaction hides no event"
    leave.set()
    hesitating.join(120)
    later = quick.events_after(seen[-1].seq)
    assert [event.job_id for event in later] == ["a job"], "what is committed later has a later number"
    assert quick.finish(job.id, claim.token, status=JobStatus.SUCCEEDED)


def test_no_reader_misses_an_event_of_many_writers_and_each_jobs_order_holds(
    open_store: OpenStore, make_spec: MakeSpec
) -> None:
    stores, reader, stop = [open_store() for _ in range(6)], open_store(), threading.Event()
    jobs = [reader.add(make_spec(), IMAGE).id for _ in range(3)]
    first = reader.last_event()

    def write(number: int) -> int:
        """Several writers share a job: only the job's row orders their events."""
        source, count = random.Random(number), 0
        while not stop.is_set():
            stores[number]._database.run(lambda tx: add_numbered_event(tx, source.choice(jobs)))
            count += 1
        return count

    seen: list[Event] = []
    with ThreadPoolExecutor(len(stores)) as pool:
        futures = [pool.submit(write, number) for number in range(len(stores))]
        end = time.monotonic() + 1.5
        while time.monotonic() < end or len(seen) <= 50:
            seen += reader.events_after(seen[-1].seq if seen else first)
        stop.set()
        written = sum(future.result() for future in futures)
    while page := reader.events_after(seen[-1].seq):
        seen += page
    assert written > 50
    for job in jobs:
        numbers = [event.data["number"] for event in seen if event.job_id == job]
        assert numbers == list(range(1, len(numbers) + 1)), "none is lost, and they come in order"
    assert len(seen) == written


def add_numbered_event(tx: Transaction, job_id: str) -> None:
    """Number a job's events by a column of its row."""
    number = tx.execute(
        text("update jobs set skips = skips + 1 where id = :id returning skips"), {"id": job_id}
    ).scalar_one()
    append_event(tx, job_id, "progress", {"number": number})


def test_events_of_one_job_are_numbered_in_the_order_of_its_changes(
    open_store: OpenStore, make_spec: MakeSpec
) -> None:
    # The earlier transaction has the later turn: it waits for the row that the other has changed.
    first, second, reader = open_store(), open_store(), open_store()
    job = first.add(make_spec(), IMAGE)
    claim = first.claim("w")
    assert claim is not None
    begun, changed = threading.Event(), threading.Event()

    def late(tx: Transaction) -> None:
        tx.execute(text("create temporary table early (n int)"))  # it has a transaction id now
        begun.set()
        assert changed.wait(120)
        tx.execute(text("select 1 from jobs where id = :id for update"), {"id": job.id})
        append_event(tx, job.id, "second", {})

    def soon(tx: Transaction) -> None:
        assert begun.wait(120)
        tx.execute(text("select 1 from jobs where id = :id for update"), {"id": job.id})
        append_event(tx, job.id, "first", {})

    waiting = threading.Thread(target=first._database.run, args=(late,))
    waiting.start()
    second._database.run(soon)
    changed.set()
    waiting.join(120)
    assert [event.kind for event in reader.events_after(0)][-2:] == ["first", "second"]


@pytest.mark.parametrize("seconds_off", [120.0, -120.0, 3600.0, -3600.0])
def test_a_host_whose_clock_is_wrong_harms_nobody(
    server_clock: OpenStore, make_spec: MakeSpec, monkeypatch: pytest.MonkeyPatch, seconds_off: float
) -> None:
    right = server_clock()
    job = right.add(make_spec(), IMAGE)
    right.register_worker("w", {"name": "cpu"})
    real = time.time
    monkeypatch.setattr(time, "time", lambda: real() + seconds_off)
    wrong = server_clock()
    claim = wrong.claim("w", lease_seconds=30)
    assert claim is not None
    assert right.requeue_expired() == wrong.requeue_expired() == []
    assert [worker.id for worker in wrong.workers(within_seconds=30)] == ["w"]
    assert wrong.heartbeat("w", device={"name": "cpu"}, job_id=job.id, token=claim.token).lost is False
    monkeypatch.undo()
    assert right.requeue_expired() == []
    seen = right.get(job.id)
    assert (seen.status, seen.attempts) == (JobStatus.RUNNING, 1)
    assert abs((seen.lease_until or 0) - 30 - right.time()) < 10
    another = wrong.add(make_spec(), IMAGE)
    assert another.created_at >= job.created_at
    assert another.id > job.id, "the page lists jobs by their ids"


def test_events_that_nobody_has_read_for_long_all_count_as_past_ones(
    open_store: OpenStore, make_spec: MakeSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(postgresql, "PUBLISHED_AT_ONCE", 2)
    store = open_store()
    for _ in range(5):
        store.add(make_spec(), IMAGE)
    assert store.last_event() == 5
    assert len(store.events_after(0)) == 5


def test_one_key_used_twice_at_once_makes_one_job(open_store: OpenStore, make_spec: MakeSpec) -> None:
    stores = [open_store() for _ in range(4)]
    spec = make_spec()
    same = Submission(spec, IMAGE, spec.fingerprint(IMAGE), idempotency_key="a key")
    together = threading.Barrier(len(stores))

    def submit(store: JobStore) -> tuple[str, bool]:
        together.wait(120)
        job, new = store.submit(same)
        return job.id, new

    for _ in range(5):
        with ThreadPoolExecutor(len(stores)) as pool:
            made = list(pool.map(submit, stores))
        assert len({job_id for job_id, _ in made}) == 1
        assert sum(new for _, new in made) == 1
        stores[0].cancel(made[0][0])  # the key is free again
    other = make_spec(prompt="another")
    stores[0].submit(same)
    with pytest.raises(IdempotencyConflict):
        stores[1].submit(Submission(other, IMAGE, other.fingerprint(IMAGE), idempotency_key="a key"))


def test_no_limit_is_passed_by_submissions_at_once(open_store: OpenStore, make_spec: MakeSpec) -> None:
    stores = [open_store(max_queued=6) for _ in range(4)]
    spec = make_spec()

    def submit(store: JobStore, limit: int | None) -> int:
        accepted = 0
        for _ in range(5):
            try:
                store.submit(
                    Submission(spec, IMAGE, spec.fingerprint(IMAGE), owner="key", max_queued_of_owner=limit)
                )
                accepted += 1
            except QueueFull:
                pass
        return accepted

    for limit, expected in ((4, 4), (None, 2)):
        with ThreadPoolExecutor(len(stores)) as pool:
            assert sum(pool.map(submit, stores, [limit] * len(stores))) == expected
    assert stores[0].counts()[JobStatus.QUEUED] == 6


def test_a_job_that_ends_while_it_is_deleted_is_erased_too(
    open_store: OpenStore, make_spec: MakeSpec, clock: Any
) -> None:
    store, worker = open_store(), open_store()
    job, claim = store.add(make_spec(), IMAGE), worker.claim("w")
    assert claim is not None
    token, ended = claim.token, []

    @sqlalchemy_event.listens_for(store._database.writes, "before_cursor_execute")
    def end_the_job(_connection: Any, _cursor: Any, statement: str, *_rest: Any) -> None:
        if "set deleted_at" in statement:
            ended.append(worker.finish(job.id, token, status=JobStatus.SUCCEEDED, result={"frames": 25}))

    assert store.delete(job.id)
    assert ended == [True]
    clock.now += 10.0
    assert store.erase_deleted(lambda _job_id: None) == [job.id]


def test_transactions_that_lock_the_same_jobs_in_other_orders_all_succeed(
    open_store: OpenStore, make_spec: MakeSpec
) -> None:
    stores = [open_store(), open_store()]
    jobs = [stores[0].add(make_spec(), IMAGE).id for _ in range(2)]
    met = threading.Barrier(2)
    met_once = threading.local()

    def change(order: list[str], tx: Transaction) -> None:
        for number, job_id in enumerate(order):
            tx.execute(text("update jobs set skips = skips + 1 where id = :id"), {"id": job_id})
            if number == 0 and not hasattr(met_once, "done"):
                met_once.done = True
                met.wait(120)

    def run(store: JobStore, order: list[str]) -> None:
        store._database.run(lambda tx: change(order, tx))

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(run, stores, [jobs, jobs[::-1]]))
    with stores[0]._database.reading() as connection:
        skips = connection.execute(text("select skips from jobs")).scalars().all()
    assert skips == [2, 2]


def _hold_a_job(url: str, job_id: str, holds: "multiprocessing.synchronize.Event") -> None:
    store = JobStore(url)

    def hold(tx: Transaction) -> None:
        tx.execute(text("update jobs set progress = 0.1 where id = :id"), {"id": job_id})
        tx.execute(
            text("insert into new_events (job_id, kind, at, data) values (:id, 'lost', 0, '{}')"),
            {"id": job_id},
        )
        holds.set()
        time.sleep(600)  # the test stops this process long before

    store._database.run(hold)


def test_a_host_that_vanishes_inside_a_transaction_stops_the_others_for_seconds_only(
    server_clock: OpenStore, database_url: str, make_spec: MakeSpec
) -> None:
    store = server_clock()
    job = store.add(make_spec(), IMAGE)
    context = multiprocessing.get_context("spawn")
    holds = context.Event()
    lost = context.Process(target=_hold_a_job, args=(database_url, job.id, holds), daemon=True)
    lost.start()
    try:
        assert holds.wait(120)
        assert lost.pid is not None
        os.kill(lost.pid, signal.SIGSTOP)
        before = time.monotonic()
        other = store.add(make_spec(), IMAGE)
        claim = store.claim("w")
        assert claim is not None
        assert claim.job.id == other.id, "what is free is not waited for"
        assert "lost" not in [event.kind for event in store.events_after(0)]
        assert store.cancel(job.id).status is JobStatus.CANCELED  # waits until the server ends the session
        waited = time.monotonic() - before
    finally:
        lost.kill()
        lost.join(120)
    assert waited < postgresql.IDLE_IN_TRANSACTION_SECONDS + postgresql.LOCK_TIMEOUT_SECONDS
    assert "lost" not in [event.kind for event in store.events_after(0)]


def test_a_waiting_worker_is_woken_when_a_job_is_queued(open_store: OpenStore, make_spec: MakeSpec) -> None:
    store, woken = open_store(), threading.Semaphore(0)
    assert store.on_queued(woken.release)
    assert woken.acquire(timeout=120), "once, when it begins to listen"
    job = open_store().add(make_spec(), IMAGE)
    assert woken.acquire(timeout=120)
    claim = store.claim("w")
    assert claim is not None
    store.release(job.id, claim.token, "test")
    assert woken.acquire(timeout=120)
    claim = store.claim("w")
    assert claim is not None
    store.finish(job.id, claim.token, status=JobStatus.FAILED)
    store.queue_again(job.id)
    assert woken.acquire(timeout=120)
    assert not woken.acquire(blocking=False), "nothing else wakes it"


def test_a_session_is_told_how_long_it_may_hang_and_the_address_may_say_otherwise(database_url: str) -> None:
    for url, expected in ((database_url, "5s"), (f"{database_url}&options=-c%20lock_timeout=7000", "7s")):
        store = JobStore(url)
        try:
            for engine in (store._database.reads, store._database.writes):
                with engine.connect() as connection:
                    shown = [
                        connection.execute(text(f"show {name}")).scalar_one()
                        for name in (
                            "lock_timeout",
                            "statement_timeout",
                            "idle_in_transaction_session_timeout",
                        )
                    ]
                assert shown == [expected, "10s", "4s"]
        finally:
            store.close()


def test_an_address_may_name_several_servers(database_url: str) -> None:
    store = JobStore(database_url.replace("?host=", "?host=/nowhere&host="))
    try:
        assert store.time() > 0
    finally:
        store.close()
