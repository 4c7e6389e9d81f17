"""What becomes of a job whose attempts end before it does: its place in the queue, its counts, its end."""

from collections.abc import Callable

import pytest
from sqlalchemy import text

from app.attempts import HELD_SECONDS, Stop
from app.jobs import JobSpec, JobStatus, Stage
from app.store import JobStore

IMAGE = b"\xff\xd8 a picture"
MakeSpec = Callable[..., JobSpec]
OpenStore = Callable[..., JobStore]
WORKER = "host/cuda:0/0a1b2c3d"
NEIGHBOUR = "host/cuda:1/0a1b2c3d"
ELSEWHERE = "host/cuda:0/ffffffff"


def kinds(store: JobStore, job_id: str) -> list[str]:
    return [event.kind for event in store.events_after(0, job_id=job_id)]


def run(store: JobStore, worker: str = WORKER, **wanted: object) -> str:
    """Claim a job; its id."""
    claim = store.claim(worker, **wanted)
    assert claim is not None
    return claim.job.id


def die(store: JobStore, times: int, reason: str = "worker_crashed") -> list[str]:
    """The ids of the jobs that so many workers, one after the other, died with."""
    ids = []
    for _ in range(times):
        ids.append(run(store))
        store.forget_worker(WORKER, reason)
    return ids


def test_a_job_that_ends_its_workers_is_held_and_tried_once_more_when_the_others_are_done(
    store: JobStore, make_spec: MakeSpec, clock: Callable[[], float]
) -> None:
    deadly = store.add(make_spec(), IMAGE)
    others = []
    for _ in range(2):
        clock.now += 1  # type: ignore[attr-defined]
        others.append(store.add(make_spec(), IMAGE).id)
    assert die(store, 2) == [deadly.id] * 2
    assert store.get(deadly.id).queue_position == 3, "a second death is no chance: the others go first"
    for other in others:
        assert run(store, NEIGHBOUR) == other
    assert die(store, 1) == [deadly.id]
    for other in others:
        assert store.release(other, store.get(other).token, "worker_stopped", refund=True)
    held = store.get(deadly.id)
    assert (held.status, held.stage, held.queue_position) == (JobStatus.QUEUED, Stage.HELD, 3)
    assert kinds(store, deadly.id)[-2:] == ["requeued", "held"]
    clock.now += 3600  # type: ignore[attr-defined]
    others.append(store.add(make_spec(), IMAGE).id)
    for expected in others:
        assert run(store) == expected
        assert expected != others[-1] or store.claim(NEIGHBOUR) is None, "it is tried alone"
        running = store.get(expected)
        assert store.finish(running.id, running.token, status=JobStatus.SUCCEEDED)
    assert die(store, 1) == [deadly.id]
    ended = store.get(deadly.id)
    assert (ended.status, (ended.error or {})["code"]) == (JobStatus.FAILED, "too_many_attempts")
    assert "its worker process died 4 times" in (ended.error or {})["message"]
    again = store.queue_again(deadly.id, why="retry")
    assert (again.status, again.stage, again.attempts, again.setbacks) == ("queued", "queued", 0, None)


def test_a_held_job_waits_for_its_own_service_only(open_store: OpenStore, make_spec: MakeSpec) -> None:
    store = open_store(max_attempts=1)
    deadly = store.add(make_spec(), IMAGE)
    assert die(store, 1) == [deadly.id]
    other = store.add(make_spec(), IMAGE)
    assert run(store) == other.id
    assert store.claim(NEIGHBOUR) is None
    assert run(store, ELSEWHERE) == deadly.id


def test_a_held_job_neither_skips_the_queue_for_its_loaded_model_nor_fills_a_wait(
    open_store: OpenStore, make_spec: MakeSpec
) -> None:
    store = open_store(max_attempts=1)
    deadly = store.add(make_spec(model="tiny"), IMAGE, needed_bytes=1)
    assert die(store, 1) == [deadly.id]
    other = store.add(make_spec(model="ltx-video"), IMAGE)
    assert run(store, loaded_model="tiny") == other.id
    token = store.get(other.id).token
    assert store.yield_to_smaller(other.id, token, WORKER, model="tiny", room_bytes=9) is None


@pytest.mark.parametrize("reason", ["worker_killed", "lease_expired", "service_killed", "worker_stopped"])
def test_an_end_by_others_costs_no_attempt(store: JobStore, make_spec: MakeSpec, reason: str) -> None:
    job = store.add(make_spec(), IMAGE)
    store.add(make_spec(), IMAGE)
    assert die(store, 6, reason) == [job.id] * 6, "and it keeps its place"
    seen = store.get(job.id)
    assert (seen.status, seen.stage, seen.attempts) == (JobStatus.QUEUED, Stage.QUEUED, 0)


def test_an_expired_lease_costs_no_attempt(
    store: JobStore, make_spec: MakeSpec, clock: Callable[[], float]
) -> None:
    job = store.add(make_spec(), IMAGE)
    for _ in range(6):
        assert run(store) == job.id
        clock.now += 31  # type: ignore[attr-defined]
        assert store.requeue_expired() == [job.id]
    assert store.get(job.id).attempts == 0


def test_durable_progress_beyond_all_before_clears_a_job_and_gives_it_its_place_back(
    store: JobStore, make_spec: MakeSpec, clock: Callable[[], float]
) -> None:
    job = store.add(make_spec(), IMAGE)
    die(store, 3)
    assert store.get(job.id).stage is Stage.HELD
    assert run(store) == job.id
    held = store.get(job.id)
    assert (held.attempts, held.stage) == (4, Stage.LOADING)
    assert store.checkpoint(job.id, held.token, "jobs/x/latents", {"steps": 4})
    assert store.get(job.id).attempts == 1
    clock.now += 1  # type: ignore[attr-defined]
    store.add(make_spec(), IMAGE)
    store.forget_worker(WORKER, "worker_crashed")
    assert die(store, 1) == [job.id], "a first death after that keeps its place"
    assert run(store) != job.id
    assert store.get(job.id).latents_path == "jobs/x/latents"


def test_the_same_latents_written_again_clear_nothing(store: JobStore, make_spec: MakeSpec) -> None:
    job = store.add(make_spec(), IMAGE)
    for _ in range(4):
        assert run(store) == job.id
        assert store.checkpoint(job.id, store.get(job.id).token, "jobs/x/latents", {"steps": 4})
        store.forget_worker(WORKER, "worker_crashed")
    assert store.get(job.id).status is JobStatus.FAILED


def test_stops_of_the_service_count_only_in_a_row(store: JobStore, make_spec: MakeSpec) -> None:
    job = store.add(make_spec(), IMAGE)
    for number in (1, 3, 5, 7, 8, 9):
        assert run(store) == job.id
        store.forget_worker(WORKER, "service_restarted", Stop("0a1b2c3d", number))
    assert (store.get(job.id).stage, store.get(job.id).attempts) == (Stage.HELD, 3)


def test_an_orderly_end_of_a_held_jobs_try_moves_it_no_further_and_holds_it_only_once(
    open_store: OpenStore, make_spec: MakeSpec
) -> None:
    store = open_store(max_attempts=1)
    deadly = store.add(make_spec(), IMAGE)
    assert die(store, 1) == [deadly.id]
    rank = rank_of(store, deadly.id)
    for reason in ("worker_stopped", "lease_expired"):
        assert run(store) == deadly.id
        assert store.release(deadly.id, store.get(deadly.id).token, reason)
        assert store.get(deadly.id).stage is Stage.HELD
    assert rank_of(store, deadly.id) == rank
    assert kinds(store, deadly.id).count("held") == 1


def test_a_held_job_is_tried_beside_others_where_jobs_never_stop_coming(
    open_store: OpenStore, make_spec: MakeSpec, clock: Callable[[], float]
) -> None:
    store = open_store(max_attempts=1)
    deadly = store.add(make_spec(), IMAGE)
    assert die(store, 1) == [deadly.id]
    other = store.add(make_spec(), IMAGE)
    assert run(store) == other.id
    clock.now += HELD_SECONDS - 60  # type: ignore[attr-defined]
    assert store.claim(NEIGHBOUR) is None
    clock.now += 120  # type: ignore[attr-defined]
    assert run(store, NEIGHBOUR) == deadly.id


def rank_of(store: JobStore, job_id: str) -> float:
    with store._database.reading() as connection:
        return float(
            connection.execute(text("select rank from jobs where id = :id"), {"id": job_id}).scalar_one()
        )


def test_a_requeue_that_waited_for_a_lock_leaves_the_leases_to_their_workers(
    store: JobStore, make_spec: MakeSpec, clock: Callable[[], float]
) -> None:
    job = store.add(make_spec(), IMAGE)
    assert run(store) == job.id
    clock.now += 31  # type: ignore[attr-defined]
    looked_at = store.time()
    clock.now += 10  # type: ignore[attr-defined]
    assert store._requeue_expired(looked_at=looked_at) == []
    assert store._requeue_expired(looked_at=store.time()) == [job.id]
