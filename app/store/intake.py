"""Operations of clients on the job table: submit, cancel, queue again."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from sqlalchemy import Connection, text

from app.jobs import Job, JobSpec, JobStatus, Json, Stage
from app.store import deliveries
from app.store.errors import IdempotencyConflict, JobDeleted, ResultExpired, WrongState
from app.store.fair_share import bounded, rank_of
from app.store.queries import queued
from app.store.queue_limits import require_room
from app.store.rows import MAX_POSITION, StoredPicture, append_event, dump, fetch_job, lock_job, new_id
from app.store.transaction import Transaction

FEW = 1000

INSERT_JOB = text("""
    insert into jobs (id, status, stage, progress, spec, model, priority, rank, skips, needed_bytes, plan,
        owner, idempotency_key, fingerprint, created_at, queued_at, expired, attempts, token,
        cancel_requested, remixed_from, expected_seconds)
    values (:id, 'queued', 'queued', 0, :spec, :model, :priority, :rank, 0, :needed_bytes, :plan, :owner,
        :idempotency_key, :fingerprint, :now, :now, false, 0, 0, false, :remixed_from, :expected_seconds)
""")
INSERT_PICTURE = text(
    "insert into job_pictures (key, job_id, field, bytes) values (:key, :job_id, :field, :bytes)"
)
COUNT_BEHIND = text(f"""
    select count(*) from (
        select 1 from jobs where status = 'queued' and rank > :rank limit {FEW}
    ) behind
""")
COUNT_BEFORE = text(f"""
    select count(*) from (
        select 1 from jobs where status = 'queued' and rank < :rank limit {MAX_POSITION - 1}
    ) before
""")
SELECT_KEY = text("""
    select id, status, fingerprint, deleted_at is not null as deleted from jobs where idempotency_key = :key
""")
DROP_KEY = text("update jobs set idempotency_key = null where id = :id")
CANCEL_QUEUED = text("""
    update jobs set status = 'canceled', stage = 'finished', finished_at = :now, expires_at = :expires_at
    where id = :id and status = 'queued'
""")
REQUEST_CANCEL = text("""
    update jobs set cancel_requested = true where id = :id and status = 'running' and not cancel_requested
""")
QUEUE_AGAIN = text("""
    update jobs set status = 'queued', stage = 'queued', progress = 0, spec = :spec,
        needed_bytes = :needed_bytes, plan = :plan, rank = :rank, skips = 0, queued_at = :now,
        started_at = null, finished_at = null, expires_at = null, expired = false, attempts = 0,
        worker_id = null, lease_until = null, cancel_requested = false, error = null, decode = null,
        setbacks = null, preempted = null, download = null, handover = null, kept_from_decoders = false
    where id = :id and status in ('succeeded', 'failed', 'canceled')
""")
EXPECTED = text("select expected_seconds from jobs where id = :id")
FAIL_QUEUED = text("""
    update jobs set status = 'failed', stage = 'finished', finished_at = :now, expires_at = :expires_at,
        error = :error
    where id = :id and status = 'queued'
""")


@dataclass(frozen=True, slots=True)
class Submission:
    """A validated request, ready to be stored.

    `fingerprint` identifies the payload, `owner` the API key; `max_queued_of_owner` is the key's own limit in
    place of the store's. `remixed_from` is the id of the job whose remix this is. With `expected_seconds`,
    the time that the job will probably run, its key gets a fair share of the queue; None: order of arrival.
    """

    spec: JobSpec
    image: bytes
    fingerprint: str
    last_image: bytes | None = None
    keyframes: tuple[bytes, ...] = ()
    plan: Json | None = None
    needed_bytes: int | None = None
    idempotency_key: str | None = None
    owner: str | None = None
    max_queued_of_owner: int | None = None
    remixed_from: str | None = None
    expected_seconds: float | None = None


# Jobs submitted together keep their order: each one's rank is this much greater than the one before.
STEP_SECONDS = 1e-6


def submit_all(
    tx: Transaction, submissions: Sequence[Submission], pictures: Sequence[Sequence[StoredPicture]]
) -> list[tuple[Job, bool]]:
    """Queue several jobs in this order, all of them or none; return each and whether it is new.

    A job is not new if its idempotency key belongs to an earlier job of the same request that has not failed
    and was neither canceled nor deleted. `pictures` are those of each submission, which lie in their place
    already. Raises `QueueFull`, or `IdempotencyConflict` if a key was used for another request.
    """
    ids = sorted(new_id(tx.now) for _ in submissions)
    existing = [_existing_job(tx, each) for each in submissions]
    new = [each for each, job_id in zip(submissions, existing, strict=True) if job_id is None]
    if new:
        require_room(tx, len(new), new[0].owner, new[0].max_queued_of_owner)
        tx.announce_queued()
    return [
        (_insert(tx, ids[n], each, pictures[n], tx.now + n * STEP_SECONDS), True)
        if existing[n] is None
        else (fetch_job(tx.connection, str(existing[n])), False)
        for n, each in enumerate(submissions)
    ]


def _insert(
    tx: Transaction,
    job_id: str,
    submission: Submission,
    pictures: Sequence[StoredPicture],
    arrived_at: float,
) -> Job:
    spec = submission.spec
    expected_seconds = bounded(submission.expected_seconds)
    rank = rank_of(tx, submission.owner, spec.priority, arrived_at, expected_seconds)
    row = {
        "id": job_id,
        "spec": spec.model_dump_json(),
        "model": spec.model,
        "priority": spec.priority,
        "rank": rank,
        "needed_bytes": submission.needed_bytes,
        "plan": dump(submission.plan),
        "owner": submission.owner,
        "idempotency_key": scoped_key(submission.owner, submission.idempotency_key),
        "fingerprint": submission.fingerprint,
        "remixed_from": submission.remixed_from,
        "expected_seconds": expected_seconds,
        "now": tx.now,
    }
    tx.execute(INSERT_JOB, row)
    for picture in pictures:
        tx.execute(INSERT_PICTURE, {"job_id": job_id, **asdict(picture)})
    append_event(tx, job_id, "accepted", {"model": spec.model, "priority": spec.priority})
    return _as_added(job_id, submission, tx.now, _position(tx, rank))


def _position(tx: Transaction, rank: float) -> int:
    # Counting from the tail, where new jobs are added, takes the same time in a long queue.
    behind = int(tx.execute(COUNT_BEHIND, {"rank": rank}).scalar_one())
    if behind < FEW:
        return min(MAX_POSITION, max(1, queued(tx.connection) - behind))
    return int(tx.execute(COUNT_BEFORE, {"rank": rank}).scalar_one()) + 1


def scoped_key(owner: str | None, key: str | None) -> str | None:
    """Return an idempotency key as the job table has it: each API key has its own."""
    return None if key is None else f"{owner or ''}:{key}"


def _as_added(job_id: str, submission: Submission, now: float, position: int) -> Job:
    return Job(
        id=job_id,
        status=JobStatus.QUEUED,
        stage=Stage.QUEUED,
        progress=0.0,
        spec=submission.spec,
        plan=submission.plan,
        needed_bytes=submission.needed_bytes,
        created_at=now,
        started_at=None,
        finished_at=None,
        expires_at=None,
        expired=False,
        attempts=0,
        token=0,
        worker_id=None,
        lease_until=None,
        cancel_requested=False,
        latents_path=None,
        denoise=None,
        decode=None,
        result=None,
        error=None,
        owner=submission.owner,
        has_last_image=submission.last_image is not None,
        queue_position=position,
        remixed_from=submission.remixed_from,
    )


def _existing_job(tx: Transaction, submission: Submission) -> str | None:
    row = job_of_key(tx.connection, submission)
    if row is None:
        return None
    if is_free(row):
        tx.execute(DROP_KEY, {"id": row.id})
        return None
    return str(row.id)


def job_of_key(connection: Connection, submission: Submission) -> Any:
    """Return the row of the job that has this idempotency key, or None. Raises `IdempotencyConflict`."""
    key = scoped_key(submission.owner, submission.idempotency_key)
    row = None if key is None else connection.execute(SELECT_KEY, {"key": key}).one_or_none()
    if row is not None and row.fingerprint != submission.fingerprint and not row.deleted:
        raise IdempotencyConflict(row.id)
    return row


def is_free(row: Any) -> bool:
    """Whether the key of such a job may be used again."""
    return row.deleted or row.status in (JobStatus.FAILED, JobStatus.CANCELED)


def cancel(tx: Transaction, job_id: str) -> Job:
    """Cancel a queued job at once, or request it of a running job's worker.

    A job that is canceled already is returned unchanged. Raises `WrongState` if the job succeeded or failed.
    """
    lock_job(tx, job_id)
    row = {"id": job_id, "now": tx.now, "expires_at": tx.expires_at}
    if tx.execute(CANCEL_QUEUED, row).rowcount:
        job = fetch_job(tx.connection, job_id)
        append_event(tx, job_id, "canceled", {"stage": Stage.QUEUED})
        _record_end_of_queued(tx, job, None)
        return job
    if tx.execute(REQUEST_CANCEL, {"id": job_id}).rowcount:
        append_event(tx, job_id, "cancel_requested", {})
    job = fetch_job(tx.connection, job_id)
    if job.status in (JobStatus.SUCCEEDED, JobStatus.FAILED):
        raise WrongState(job, "canceled")
    return job


def finish_early(tx: Transaction, job_id: str) -> Job:
    """Ask the worker of a job that is denoised to end with the next step and decode what is there.

    Raises `WrongState` for any other job.
    """
    lock_job(tx, job_id)
    job = fetch_job(tx.connection, job_id)
    if job.status is not JobStatus.RUNNING or job.stage is not Stage.DENOISING:
        raise WrongState(job, "finished early: that needs a job that is being denoised")
    append_event(tx, job_id, "finish_early_requested", {})
    return job


def fail_queued(tx: Transaction, job_id: str, error: Json) -> bool:
    """Fail a queued job that no device can run; return False if it is no longer queued."""
    row = {"id": job_id, "now": tx.now, "expires_at": tx.expires_at, "error": dump(error)}
    if not tx.execute(FAIL_QUEUED, row).rowcount:
        return False
    _record_end_of_queued(tx, fetch_job(tx.connection, job_id), error)
    return True


def _record_end_of_queued(tx: Transaction, job: Job, error: Json | None) -> None:
    data: Json = {"outcome": job.status, "model": job.spec.model, "queued_only": True}
    append_event(tx, job.id, "finished", data if error is None else {**data, "error": error})
    deliveries.enqueue(tx, job.id, job.spec, job.status)


def queue_again(
    tx: Transaction,
    job_id: str,
    *,
    changes: Mapping[str, Any] | None = None,
    plan: Json | None = None,
    needed_bytes: int | None = None,
    why: str = "redecode",
    max_queued_of_owner: int | None = None,
) -> Job:
    """Queue an ended job again with changed decode fields; a worker reuses its latents if they exist.

    Raises `QueueFull` as `submit` does; `WrongState` if the job has not ended, or if it succeeded and `why`
    is "retry"; `ResultExpired` if its image and latents were deleted or soon are; `JobDeleted`.
    """
    job = lock_job(tx, job_id)
    if job.delete_requested:
        raise JobDeleted(job)
    if not job.status.is_terminal or (why == "retry" and job.status is JobStatus.SUCCEEDED):
        raise WrongState(job, "retried" if why == "retry" else "queued again")
    if job.expired:
        raise ResultExpired(job_id)
    require_room(tx, 1, job.owner, max_queued_of_owner)
    spec = JobSpec.model_validate({**job.spec.model_dump(), **(changes or {})})
    row = {
        "id": job_id,
        "spec": spec.model_dump_json(),
        "needed_bytes": needed_bytes,
        "plan": dump(plan),
        "rank": rank_of(tx, job.owner, spec.priority, tx.now, tx.execute(EXPECTED, {"id": job_id}).scalar()),
        "now": tx.now,
    }
    tx.execute(QUEUE_AGAIN, row)
    tx.announce_queued()
    append_event(tx, job_id, "queued_again", {"reason": why, "model": spec.model})
    return fetch_job(tx.connection, job_id)
