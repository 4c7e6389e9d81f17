"""The store's contract, over the database that `database_url` names."""

import multiprocessing
import threading
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
from sqlalchemy import text

from app.jobs import TRANSITIONS, JobError, JobSpec, JobStatus, Stage
from app.store import (
    IdempotencyConflict,
    JobStore,
    NewerSchema,
    NoSuchJob,
    QueueFull,
    ResultExpired,
    StoreUnavailable,
    Submission,
    WrongState,
    claims,
    intake,
)
from app.store.rows import append_event, new_id
from app.store.transaction import Transaction

IMAGE = b"\xff\xd8 a picture"
MakeSpec = Callable[..., JobSpec]
OpenStore = Callable[..., JobStore]


def kinds(store: JobStore, job_id: str) -> list[str]:
    return [event.kind for event in store.events_after(0, job_id=job_id)]


def test_an_added_job_is_there_for_another_process_at_once(
    open_store: OpenStore, make_spec: MakeSpec
) -> None:
    job = open_store().add(make_spec(), IMAGE, plan={"strategy": "batched"}, needed_bytes=5)
    seen = open_store().get(job.id)
    assert seen == job
    assert (seen.spec, seen.plan, seen.needed_bytes) == (make_spec(), {"strategy": "batched"}, 5)
    assert open_store().image(job.id) == IMAGE


def test_a_job_that_is_not_there_is_an_error(store: JobStore) -> None:
    for call in (store.get, store.image, store.cancel, store.queue_again):
        with pytest.raises(NoSuchJob):
            call("nonesuch")


def test_jobs_run_by_priority_then_age(
    store: JobStore, make_spec: MakeSpec, clock: Callable[[], float]
) -> None:
    ids = {}
    for name, priority in (("old", 0), ("new", 0), ("low", -1), ("high", 1)):
        clock.now += 1  # type: ignore[attr-defined]
        ids[store.add(make_spec(priority=priority), IMAGE).id] = name
    positions = [ids[job.id] for job in sorted(store.page(), key=lambda job: job.queue_position or 0)]
    claimed = []
    while claim := store.claim("w"):
        claimed.append(ids[claim.job.id])
    assert claimed == positions == ["high", "old", "new", "low"]


def test_a_page_tells_the_same_positions_as_its_jobs_do(store: JobStore, make_spec: MakeSpec) -> None:
    for priority in (0, 2, 0, -3, 2, 1):  # the clock stands still: some are equal
        store.add(make_spec(priority=priority), IMAGE)
    assert store.claim("w") is not None
    for part in (store.page(), store.page(limit=2), store.page(limit=3, newest_first=False)):
        assert [job.queue_position for job in part] == [store.get(job.id).queue_position for job in part]


def test_waiting_outweighs_priority_in_the_end(
    open_store: OpenStore, make_spec: MakeSpec, clock: Callable[[], float]
) -> None:
    store = open_store(priority_seconds=100.0)
    patient = store.add(make_spec(), IMAGE)
    clock.now += 101  # type: ignore[attr-defined]
    store.add(make_spec(priority=1), IMAGE)
    claim = store.claim("w")
    assert claim is not None
    assert claim.job.id == patient.id


def test_a_loaded_model_goes_first_but_not_for_ever(open_store: OpenStore, make_spec: MakeSpec) -> None:
    store = open_store(max_skips=2)
    other = store.add(make_spec(model="ltx-video"), IMAGE)
    for _ in range(4):
        store.add(make_spec(model="tiny"), IMAGE)
    order = [store.claim("w", loaded_model="tiny") for _ in range(4)]
    assert [claim.job.spec.model for claim in order if claim] == ["tiny", "tiny", "ltx-video", "tiny"]
    assert store.get(other.id).status is JobStatus.RUNNING


def test_a_loaded_model_does_not_outrank_priority(store: JobStore, make_spec: MakeSpec) -> None:
    store.add(make_spec(model="tiny"), IMAGE)
    urgent = store.add(make_spec(model="ltx-video", priority=1), IMAGE)
    claim = store.claim("w", loaded_model="tiny")
    assert claim is not None
    assert claim.job.id == urgent.id


@pytest.mark.parametrize(
    ("capacity", "models", "expected"),
    [
        (None, None, "big"),
        (10, None, "small"),
        (5, None, "unknown"),
        (None, ["other"], None),
        (None, [], None),
    ],
)
def test_a_worker_gets_only_what_its_device_can_hold(
    store: JobStore, make_spec: MakeSpec, capacity: int | None, models: list[str] | None, expected: str | None
) -> None:
    names = {
        store.add(make_spec(), IMAGE, needed_bytes=n).id: name
        for name, n in (("big", 20), ("small", 10), ("unknown", None))
    }
    claim = store.claim("w", capacity_bytes=capacity, models=models)
    assert (claim and names[claim.job.id]) == expected


def test_a_claim_counts_attempts_and_leases_the_job(
    store: JobStore, make_spec: MakeSpec, clock: Callable[[], float]
) -> None:
    store.add(make_spec(), IMAGE)
    claim = store.claim("w", lease_seconds=30)
    assert claim is not None
    assert (claim.job.attempts, claim.job.worker_id, claim.token) == (1, "w", claim.job.token)
    assert claim.job.lease_until == clock() + 30
    assert store.claim("v") is None


def test_a_worker_whose_lease_ended_can_change_nothing_any_more(
    store: JobStore, make_spec: MakeSpec, clock: Callable[[], float]
) -> None:
    job = store.add(make_spec(), IMAGE)
    zombie = store.claim("zombie", lease_seconds=30)
    assert zombie is not None
    clock.now += 31  # type: ignore[attr-defined]
    assert store.requeue_expired() == [job.id]
    heir = store.claim("heir")
    assert heir is not None
    assert heir.token > zombie.token
    before = store.get(job.id)
    assert not store.progress(job.id, zombie.token, stage=Stage.DECODING, progress=0.9)
    assert not store.event(job.id, zombie.token, "chunk", {})
    assert not store.checkpoint(job.id, zombie.token, "latents", {})
    assert not store.release(job.id, zombie.token, "late")
    assert not store.finish(job.id, zombie.token, status=JobStatus.SUCCEEDED)
    assert store.heartbeat("zombie", device={}, job_id=job.id, token=zombie.token).lost
    assert store.get(job.id) == before
    assert store.finish(job.id, heir.token, status=JobStatus.SUCCEEDED, result={"frames": 25})
    assert not store.finish(job.id, heir.token, status=JobStatus.FAILED)
    assert kinds(store, job.id).count("finished") == 1


def test_a_heartbeat_prolongs_the_lease(
    store: JobStore, make_spec: MakeSpec, clock: Callable[[], float]
) -> None:
    job = store.add(make_spec(), IMAGE)
    claim = store.claim("w", lease_seconds=30)
    assert claim is not None
    clock.now += 20  # type: ignore[attr-defined]
    assert not store.heartbeat(
        "w", device={"name": "cpu"}, job_id=job.id, token=claim.token, lease_seconds=30
    ).lost
    clock.now += 20  # type: ignore[attr-defined]
    assert store.requeue_expired() == []


def test_attempts_are_capped_and_a_drain_takes_none(open_store: OpenStore, make_spec: MakeSpec) -> None:
    store = open_store(max_attempts=2)
    job = store.add(make_spec(), IMAGE)
    for refund in (True, False, True, False, True, False):  # two, and the last try of a held job
        claim = store.claim("w")
        assert claim is not None
        assert store.release(job.id, claim.token, "crash", refund=refund)
    ended = store.get(job.id)
    assert (ended.status, (ended.error or {})["code"]) == (JobStatus.FAILED, "too_many_attempts")


def test_a_worker_that_is_gone_gives_its_job_back_and_keeps_its_latents(
    store: JobStore, make_spec: MakeSpec
) -> None:
    job = store.add(make_spec(), IMAGE)
    store.register_worker("w", {"name": "cpu"})
    claim = store.claim("w")
    assert claim is not None
    assert store.checkpoint(job.id, claim.token, "jobs/x/latents", {"steps": 4, "seconds": 1.0})
    assert store.forget_worker("w") == [job.id]
    assert store.workers() == []
    again = store.claim("v")
    assert again is not None
    assert again.job.latents_path == "jobs/x/latents"
    assert kinds(store, job.id) == ["accepted", "claimed", "denoised", "requeued", "claimed"]


def test_a_queued_job_is_canceled_at_once_and_a_running_one_by_its_worker(
    store: JobStore, make_spec: MakeSpec
) -> None:
    queued, running = store.add(make_spec(), IMAGE), store.add(make_spec(priority=5), IMAGE)
    claim = store.claim("w")
    assert claim is not None
    assert store.cancel(queued.id).status is JobStatus.CANCELED
    assert store.cancel(queued.id).status is JobStatus.CANCELED
    assert store.cancel(running.id).status is JobStatus.RUNNING
    assert store.heartbeat("w", device={}, job_id=running.id, token=claim.token).cancel_requested
    assert store.finish(running.id, claim.token, status=JobStatus.CANCELED)
    assert kinds(store, running.id)[-3:] == ["cancel_requested", "canceled", "finished"]
    assert kinds(store, queued.id) == ["accepted", "canceled", "finished"]


def test_a_job_to_be_canceled_whose_worker_is_lost_ends_canceled(
    store: JobStore, make_spec: MakeSpec
) -> None:
    job = store.add(make_spec(), IMAGE)
    store.claim("w")
    store.cancel(job.id)
    store.forget_worker("w")
    assert store.get(job.id).status is JobStatus.CANCELED


def test_an_ended_job_cannot_be_canceled_but_queued_again(store: JobStore, make_spec: MakeSpec) -> None:
    job = store.add(make_spec(), IMAGE)
    with pytest.raises(WrongState):
        store.queue_again(job.id)
    claim = store.claim("w")
    assert claim is not None
    store.checkpoint(job.id, claim.token, "latents", {})
    store.finish(
        job.id, claim.token, status=JobStatus.SUCCEEDED, decode={"strategy": "batched"}, result={"frames": 25}
    )
    with pytest.raises(WrongState):
        store.cancel(job.id)
    again = store.queue_again(job.id, changes={"decode_strategy": "per_frame"})
    assert (again.status, again.spec.decode_strategy, again.attempts) == (JobStatus.QUEUED, "per_frame", 0)
    assert again.result == {"frames": 25}, "the video that is there stays until another replaces it"
    second = store.claim("w")
    assert second is not None
    assert second.job.latents_path == "latents"


def test_a_failure_is_kept_with_its_numbers(store: JobStore, make_spec: MakeSpec) -> None:
    job = store.add(make_spec(), IMAGE)
    claim = store.claim("w")
    assert claim is not None
    error = JobError("out_of_memory", "no room", {"needed_bytes": 5})
    store.finish(job.id, claim.token, status=JobStatus.FAILED, error=error, durations={"denoising": 2.0})
    assert store.get(job.id).error == error.as_json()
    finished = store.events_after(0, job_id=job.id)[-1]
    assert finished.data["outcome"] == "failed"
    assert finished.data["durations"] == {"denoising": 2.0}


def test_an_idempotency_key_is_bound_to_its_payload_and_owner(store: JobStore, make_spec: MakeSpec) -> None:
    def submit(prompt: str, owner: str | None = None) -> tuple[str, bool]:
        spec = make_spec(prompt=prompt)
        job, new = store.submit(
            Submission(spec, IMAGE, spec.fingerprint(IMAGE), idempotency_key="k", owner=owner)
        )
        return job.id, new

    first, new = submit("a")
    assert new
    assert submit("a") == (first, False)
    with pytest.raises(IdempotencyConflict):
        submit("b")
    assert submit("b", owner="someone else")[1]
    store.cancel(first)
    assert submit("a")[0] != first


def test_a_full_queue_takes_no_more(open_store: OpenStore, make_spec: MakeSpec) -> None:
    store = open_store(max_queued=2)
    store.add(make_spec(), IMAGE)
    store.add(make_spec(), IMAGE)
    with pytest.raises(QueueFull):
        store.add(make_spec(), IMAGE)
    store.claim("w")
    store.add(make_spec(), IMAGE)


def test_pages_follow_each_other_without_gap_or_repetition(store: JobStore, make_spec: MakeSpec) -> None:
    ids = [store.add(make_spec(), IMAGE).id for _ in range(5)]
    first = store.page(limit=2)
    second = store.page(limit=3, after=first[-1].id)
    assert sorted(job.id for job in first + second) == sorted(ids)
    assert store.page(status=JobStatus.RUNNING) == []
    assert len(store.page(model="tiny")) == 5


def test_a_paused_worker_gets_no_job_not_even_right_after_a_restart(
    open_store: OpenStore, make_spec: MakeSpec
) -> None:
    store = open_store()
    for _ in range(2):
        store.add(make_spec(), IMAGE)
    store.register_worker("a/cuda:0/1", {"name": "cuda:0"})
    claim = store.claim("a/cuda:0/1")
    assert claim is not None
    store.pause_worker("a/cuda:0/1", paused=True)
    assert store.finish(claim.job.id, claim.token, status=JobStatus.SUCCEEDED), "running work ends"
    store.forget_worker("a/cuda:0/1")
    store.close()
    restarted = open_store()
    restarted.register_worker("a/cuda:0/1", {"name": "cuda:0"})
    assert restarted.claim("a/cuda:0/1") is None, "before its first heartbeat"
    restarted.register_worker("b/cuda:0/2", {"name": "cuda:0"})
    assert restarted.claim("b/cuda:0/2") is not None, "another host's device of the same name"


@pytest.mark.parametrize("named", ["a/cuda:0/1", "a/cuda:0", "cuda:0"])
def test_a_paused_worker_is_reported_as_paused_and_resumed_by_its_id(store: JobStore, named: str) -> None:
    device = {"name": "cuda:0"}
    for worker in ("a/cuda:0/1", "a/cuda:1/1"):
        store.register_worker(worker, {"name": worker.split("/")[1]})
    store.pause_worker(named, paused=True)
    assert store.heartbeat("a/cuda:0/1", device=device).paused
    assert not store.heartbeat("a/cuda:1/1", device={"name": "cuda:1"}).paused
    assert [worker.state for worker in store.workers()] == ["paused", "active"]
    assert [worker.host for worker in store.workers()] == ["a", "a"]
    store.pause_worker("a/cuda:0/1", paused=False)
    assert not store.heartbeat("a/cuda:0/1", device=device).paused


def test_results_are_marked_before_they_are_deleted(
    open_store: OpenStore, make_spec: MakeSpec, clock: Callable[[], float]
) -> None:
    store = open_store(result_ttl_seconds=100.0)
    job = store.add(make_spec(), IMAGE)
    claim = store.claim("w")
    assert claim is not None
    store.finish(job.id, claim.token, status=JobStatus.SUCCEEDED, result={"frames": 25})
    removed: list[str] = []
    assert store.expire_results(removed.append) == []
    clock.now += 101  # type: ignore[attr-defined]
    assert store.expire_results(removed.append) == [job.id]
    assert removed == []
    assert store.get(job.id).expired
    clock.now += 61  # type: ignore[attr-defined]
    store.expire_results(removed.append)
    assert removed == [job.id]
    assert store.get(job.id).status is JobStatus.SUCCEEDED
    clock.now += 61  # type: ignore[attr-defined]
    store.expire_results(removed.append)
    assert removed == [job.id]


def test_a_failing_write_does_not_harm_its_neighbours_in_the_same_commit(
    store: JobStore, make_spec: MakeSpec
) -> None:
    outcomes: list[object] = []

    def add() -> None:
        outcomes.append(store.add(make_spec(), IMAGE))

    def fail() -> None:
        with pytest.raises(NoSuchJob):
            store.cancel("nonesuch")
        outcomes.append("refused")

    threads = [threading.Thread(target=target) for target in [add, fail] * 20]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert outcomes.count("refused") == 20
    assert store.counts()[JobStatus.QUEUED] == 20


def test_an_event_is_never_seen_before_one_with_a_lower_number(
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
    adding = threading.Thread(target=quick.add, args=(make_spec(), IMAGE))
    adding.start()
    adding.join(0.3)
    seen = [event.seq for event in quick.events_after(0)]
    leave.set()
    hesitating.join(120)
    adding.join(120)
    seen += [event.seq for event in quick.events_after(max(seen, default=0))]
    assert seen == [event.seq for event in quick.events_after(0)]
    assert len(seen) == 2


def test_jobs_that_are_handed_in_together_are_queued_in_order_or_not_at_all(
    open_store: OpenStore, make_spec: MakeSpec
) -> None:
    store = open_store(max_queued=5)

    def together(*prompts: str) -> list[Submission]:
        specs = [make_spec(prompt=prompt) for prompt in prompts]
        return [Submission(s, IMAGE, s.fingerprint(IMAGE), idempotency_key=s.prompt) for s in specs]

    added = store.submit_all(together("a", "b", "c"))
    assert [(job.spec.prompt, job.queue_position, new) for job, new in added] == [
        ("a", 1, True),
        ("b", 2, True),
        ("c", 3, True),
    ]
    assert [store.get(job.id).queue_position for job, _ in added] == [1, 2, 3]
    assert [job.id for job in store.page(newest_first=False)] == [job.id for job, _ in added]
    with pytest.raises(QueueFull):
        store.submit_all(together("d", "e", "f"))
    assert [new for _, new in store.submit_all(together("a", "b", "c", "d", "e"))] == [
        *[False] * 3,
        *[True] * 2,
    ]
    assert [claim.job.spec.prompt for claim in [store.claim("w") for _ in range(5)] if claim] == list("abcde")


def test_a_queued_job_that_can_never_run_is_ended_saying_why(store: JobStore, make_spec: MakeSpec) -> None:
    job = store.add(make_spec(), IMAGE, needed_bytes=10)
    small = store.add(make_spec(), IMAGE, needed_bytes=5)
    assert store.queued_models() == ["tiny"]
    assert store.queued_beyond("tiny", 5) == {job.id: 10}
    error = {"code": "does_not_fit", "message": "no device"}
    assert store.fail_queued(job.id, error)
    assert (store.get(job.id).status, store.get(job.id).error) == (JobStatus.FAILED, error)
    assert kinds(store, job.id) == ["accepted", "finished"]
    store.claim("w")
    assert not store.fail_queued(small.id, error), "it runs"


def test_an_expired_job_is_not_queued_again(store: JobStore, make_spec: MakeSpec) -> None:
    job = store.add(make_spec(), IMAGE)
    store.cancel(job.id)
    store.discard(job.id)
    for why in ("retry", "redecode"):
        with pytest.raises(ResultExpired):
            store.queue_again(job.id, why=why)


def test_jobs_can_be_listed_since_a_time(
    store: JobStore, make_spec: MakeSpec, clock: Callable[[], float]
) -> None:
    store.add(make_spec(), IMAGE)
    clock.now += 10  # type: ignore[attr-defined]
    later = store.add(make_spec(), IMAGE)
    assert [job.id for job in store.page(since=clock() - 5)] == [later.id]


def _claim_all(database_url: str, worker: str, results: "multiprocessing.Queue[str]") -> None:
    store = JobStore(database_url)
    while claim := store.claim(worker):
        results.put(claim.job.id)
    store.close()


def test_processes_that_claim_at_once_never_get_the_same_job(
    store: JobStore, make_spec: MakeSpec, database_url: str
) -> None:
    ids = {store.add(make_spec(), IMAGE).id for _ in range(30)}
    context = multiprocessing.get_context("spawn")
    results = context.Queue()
    workers = [context.Process(target=_claim_all, args=(database_url, f"w{n}", results)) for n in range(2)]
    for worker in workers:
        worker.start()
    claimed = [results.get(timeout=120) for _ in ids]
    for worker in workers:
        worker.join(timeout=60)
    assert sorted(claimed) == sorted(ids)
    assert results.empty()


def test_a_closed_store_refuses(open_store: OpenStore, make_spec: MakeSpec) -> None:
    store = open_store()
    store.close()
    with pytest.raises(StoreUnavailable):
        store.add(make_spec(), IMAGE)


def test_every_status_has_its_legal_changes() -> None:
    assert set(TRANSITIONS) == set(JobStatus)
    assert all(JobStatus.QUEUED in TRANSITIONS[status] for status in JobStatus if status.is_terminal)


def test_a_store_in_memory_is_refused() -> None:
    with pytest.raises(ValueError, match="database file"):
        JobStore("sqlite://")


def test_the_schema_of_a_fresh_database_is_at_the_newest_revision(store: JobStore) -> None:
    from alembic.script import ScriptDirectory

    from app import store as package
    from app.store import database

    folder = Path(package.__file__).with_name("migrations")
    assert ScriptDirectory(str(folder)).get_heads() == [database.HEAD_REVISION]
    store.migrate()


def test_what_another_process_does_is_counted_at_once(open_store: OpenStore, make_spec: MakeSpec) -> None:
    one, other = open_store(max_queued=2), open_store(max_queued=2)
    first = one.add(make_spec(), IMAGE)
    other.add(make_spec(), IMAGE)
    for store in (one, other):
        with pytest.raises(QueueFull):
            store.add(make_spec(), IMAGE)
    other.cancel(first.id)
    assert one.add(make_spec(), IMAGE).queue_position == 2
    claim = other.claim("w")
    assert claim is not None
    assert one.add(make_spec(), IMAGE).queue_position == 2
    other.release(claim.job.id, claim.token, "test")
    with pytest.raises(QueueFull):
        one.add(make_spec(), IMAGE)


def test_jobs_of_one_millisecond_keep_their_order() -> None:
    ids = [new_id(1_700_000_000.0) for _ in range(1000)]
    assert ids == sorted(set(ids))


def test_a_job_that_waits_for_memory_yields_to_smaller_ones_a_limited_number_of_times(
    open_store: OpenStore, make_spec: MakeSpec
) -> None:
    store = open_store(max_skips=2)
    big = store.add(make_spec(), IMAGE, needed_bytes=100).id
    small = [store.add(make_spec(), IMAGE, needed_bytes=size).id for size in (60, 10, 20, 30)]
    model = make_spec().model
    for expected in small[1:3]:
        waiting = store.claim("w", models=[model], capacity_bytes=200)
        assert waiting is not None
        assert waiting.job.id == big  # it kept its place
        assert waiting.job.attempts == 1  # making way costs no attempt
        smaller = store.yield_to_smaller(big, waiting.token, "w", model=model, room_bytes=50)
        assert smaller is not None
        assert smaller.job.id == expected
        assert store.get(big).status is JobStatus.QUEUED
        store.finish(smaller.job.id, smaller.token, status=JobStatus.SUCCEEDED)
    waiting = store.claim("w", models=[model], capacity_bytes=200)
    assert waiting is not None
    assert store.yield_to_smaller(big, waiting.token, "w", model=model, room_bytes=50) is None
    assert store.get(big).status is JobStatus.RUNNING


@pytest.mark.parametrize("case", ["nothing_smaller", "other_model", "unknown_need", "canceled", "lost"])
def test_a_waiting_job_keeps_its_worker_if_no_other_worker_can_run_it(
    store: JobStore, make_spec: MakeSpec, case: str
) -> None:
    big = store.add(make_spec(), IMAGE, needed_bytes=100).id
    needed = {"nothing_smaller": 60, "unknown_need": None}.get(case, 10)
    store.add(make_spec(), IMAGE, needed_bytes=needed)
    claim = store.claim("w", models=[make_spec().model])
    assert claim is not None
    if case == "canceled":
        store.cancel(big)
    model = "another" if case == "other_model" else make_spec().model
    token = claim.token + 1 if case == "lost" else claim.token
    assert store.yield_to_smaller(big, token, "w", model=model, room_bytes=50) is None
    assert store.get(big).status is JobStatus.RUNNING


def test_the_counts_are_those_of_the_table_whatever_happened(
    store: JobStore, make_spec: MakeSpec, clock: Callable[[], float]
) -> None:
    for _ in range(6):
        store.add(make_spec(), IMAGE)
    claims = [claim for _ in range(4) if (claim := store.claim("w")) is not None]
    store.finish(claims[0].job.id, claims[0].token, status=JobStatus.SUCCEEDED)
    store.finish(claims[1].job.id, claims[1].token, status=JobStatus.FAILED)
    store.release(claims[2].job.id, claims[2].token, "test")
    store.queue_again(claims[1].job.id)
    store.cancel(claims[2].job.id)
    store.forget_worker("w")
    clock.now += 100  # type: ignore[attr-defined]
    assert store.submit_all([]) == []
    found = Counter(job.status for job in store.page(limit=100))
    assert store.counts() == {status: found[status] for status in JobStatus}
    assert sum(store.counts().values()) == 6


def test_jobs_are_found_wherever_in_the_queue_they_are(
    store: JobStore, make_spec: MakeSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    others = claims.HEAD + 5
    specs = [make_spec(model="large" if n % 2 else "other") for n in range(others)]
    store.submit_all([Submission(s, IMAGE, s.fingerprint(IMAGE), needed_bytes=100) for s in specs])
    assert store.claim("w", models=["large"], capacity_bytes=99) is None
    assert store.claim("w", models=["tiny"]) is None
    small = store.add(make_spec(model="large"), IMAGE, needed_bytes=50).id
    unknown = store.add(make_spec(model="large"), IMAGE).id
    tiny = [store.add(make_spec(), IMAGE, needed_bytes=5).id for _ in range(2)]
    found = [store.claim("w", models=["large"], capacity_bytes=99) for _ in range(3)]
    assert [claim and claim.job.id for claim in found] == [small, unknown, None]
    monkeypatch.setattr(claims, "FEW", 1)  # more than a few fit: the queue is walked
    found = [store.claim("w", models=["tiny", "large"], capacity_bytes=99) for _ in range(3)]
    assert [claim and claim.job.id for claim in found] == [*tiny, None]


def test_a_position_far_behind_is_told_as_a_bound(
    store: JobStore, make_spec: MakeSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = make_spec()
    monkeypatch.setattr(intake, "MAX_POSITION", 3)
    positions = [store.add(spec, IMAGE).queue_position for _ in range(5)]
    assert positions == [1, 2, 3, 3, 3]


def test_a_database_of_a_newer_version_is_refused_in_one_line(open_store: OpenStore) -> None:
    store = open_store()
    store._database.run(lambda tx: tx.execute(text("update alembic_version set version_num = '9999'")))
    with pytest.raises(
        NewerSchema, match=r"^the database \S+ was upgraded by a newer version \(schema 9999, .*$"
    ):
        store.migrate()
