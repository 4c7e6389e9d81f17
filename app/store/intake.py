"""What clients do to the job table: hand in, cancel, ask again. Runs inside the caller's transaction."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, text

from app.jobs import Job, JobSpec, JobStatus, Json, Stage
from app.store import deliveries
from app.store.errors import IdempotencyConflict, QueueFull, WrongState
from app.store.rows import append_event, dump, fetch_job, new_id

INSERT_JOB = text("""
    insert into jobs (id, status, stage, progress, spec, model, priority, rank, skips, needed_bytes, plan,
    owner,
        idempotency_key, fingerprint, created_at, queued_at, expired, attempts, token,
        cancel_requested)
    values (:id, 'queued', 'queued', 0, :spec, :model, :priority, :rank, 0, :needed_bytes, :plan, :owner,
        :idempotency_key, :fingerprint, :now, :now, false, 0, 0, false)
""")
INSERT_IMAGE = text("insert into images (job_id, data, last_data) values (:job_id, :data, :last_data)")
COUNT_QUEUED = text("select count(*) from jobs where status = 'queued'")
COUNT_BEHIND = text("select count(*) from jobs where status = 'queued' and rank > :rank")
COUNT_QUEUED_OF = text("select count(*) from jobs where status = 'queued' and owner = :owner")
SELECT_KEY = text("select id, status, fingerprint from jobs where idempotency_key = :key")
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
        needed_bytes = :needed_bytes, plan = :plan, rank = :rank, skips = 0,
        queued_at = :now, started_at = null, finished_at = null,
        expires_at = null, expired = false, attempts = 0, worker_id = null, lease_until = null,
        cancel_requested = false, error = null, decode = null
    where id = :id and status in ('succeeded', 'failed', 'canceled')
""")


@dataclass(frozen=True, slots=True)
class Submission:
    """A validated request, ready to be stored. `owner` names the API key, `fingerprint` the payload.

    `max_queued_of_owner`: the key's own limit, in place of the store's.
    """

    spec: JobSpec
    image: bytes
    fingerprint: str
    last_image: bytes | None = None
    plan: Json | None = None
    needed_bytes: int | None = None
    idempotency_key: str | None = None
    owner: str | None = None
    max_queued_of_owner: int | None = None


def rank_of(now: float, priority: int, priority_seconds: float) -> float:
    """Sort key of the queue: the time of arrival, moved back by what the priority is worth in waiting."""
    return now - priority * priority_seconds


def add(
    connection: Connection,
    submission: Submission,
    *,
    now: float,
    max_queued: int,
    max_queued_of_owner: int | None,
    priority_seconds: float,
) -> tuple[Job, bool]:
    """Queue a job; `(job, False)` where its idempotency key already had the same one, which has not
    failed.
    """
    key = submission.idempotency_key and f"{submission.owner or ''}:{submission.idempotency_key}"
    earlier = key and _earlier(connection, key, submission.fingerprint)
    if earlier:
        return fetch_job(connection, earlier), False
    owner_limit = submission.max_queued_of_owner or max_queued_of_owner
    queued = _check_room(connection, submission.owner, max_queued, owner_limit)
    spec, job_id = submission.spec, new_id()
    row = {
        "id": job_id,
        "spec": spec.model_dump_json(),
        "model": spec.model,
        "priority": spec.priority,
        "rank": rank_of(now, spec.priority, priority_seconds),
        "needed_bytes": submission.needed_bytes,
        "plan": dump(submission.plan),
        "owner": submission.owner,
        "idempotency_key": key,
        "fingerprint": submission.fingerprint,
        "now": now,
    }
    connection.execute(INSERT_JOB, row)
    images = {"data": submission.image, "last_data": submission.last_image}
    connection.execute(INSERT_IMAGE, {"job_id": job_id, **images})
    append_event(connection, job_id, "accepted", {"model": spec.model, "priority": spec.priority}, now)
    # Counted from the tail, where new jobs stand: a long queue makes this no slower.
    behind = connection.execute(COUNT_BEHIND, {"rank": row["rank"]}).scalar_one()
    return _as_added(job_id, submission, now, queued + 1 - behind), True


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
    )


def _earlier(connection: Connection, key: str, fingerprint: str) -> str | None:
    row = connection.execute(SELECT_KEY, {"key": key}).one_or_none()
    if row is None:
        return None
    if row.fingerprint != fingerprint:
        raise IdempotencyConflict(row.id)
    if row.status in (JobStatus.FAILED, JobStatus.CANCELED):
        connection.execute(DROP_KEY, {"id": row.id})  # a failed job may be tried again under its key
        return None
    return str(row.id)


def _check_room(connection: Connection, owner: str | None, limit: int, owner_limit: int | None) -> int:
    """How many jobs are queued; `QueueFull` where one more would be too many."""
    queued: int = connection.execute(COUNT_QUEUED).scalar_one()
    if queued >= limit:
        raise QueueFull(queued, limit)
    if owner is not None and owner_limit is not None:
        own = connection.execute(COUNT_QUEUED_OF, {"owner": owner}).scalar_one()
        if own >= owner_limit:
            raise QueueFull(own, owner_limit)
    return queued


def cancel(connection: Connection, job_id: str, *, now: float, ttl_seconds: float | None) -> Job:
    """Cancel a queued job at once, ask the worker of a running one; `WrongState` where the job has ended
    otherwise.
    """
    expires_at = None if ttl_seconds is None else now + ttl_seconds
    if connection.execute(CANCEL_QUEUED, {"id": job_id, "now": now, "expires_at": expires_at}).rowcount:
        job = fetch_job(connection, job_id)
        append_event(connection, job_id, "canceled", {"stage": Stage.QUEUED}, now)
        data = {"outcome": JobStatus.CANCELED, "model": job.spec.model, "queued_only": True}
        append_event(connection, job_id, "finished", data, now)
        deliveries.enqueue(connection, job_id, job.spec, JobStatus.CANCELED, now)
        return job
    if connection.execute(REQUEST_CANCEL, {"id": job_id}).rowcount:
        append_event(connection, job_id, "cancel_requested", {}, now)
    job = fetch_job(connection, job_id)
    if job.status in (JobStatus.SUCCEEDED, JobStatus.FAILED):
        raise WrongState(job, "canceled")
    return job


def queue_again(
    connection: Connection,
    job_id: str,
    *,
    changes: Mapping[str, Any],
    plan: Json | None,
    needed_bytes: int | None,
    why: str,
    now: float,
    priority_seconds: float,
) -> Job:
    """Put an ended job back into the queue with changed decode fields; latents it has are used again."""
    job = fetch_job(connection, job_id)
    if not job.status.is_terminal:
        raise WrongState(job, "queued again")
    spec = JobSpec.model_validate({**job.spec.model_dump(), **changes})
    row = {
        "id": job_id,
        "spec": spec.model_dump_json(),
        "needed_bytes": needed_bytes,
        "plan": dump(plan),
        "rank": rank_of(now, spec.priority, priority_seconds),
        "now": now,
    }
    connection.execute(QUEUE_AGAIN, row)
    append_event(connection, job_id, "queued_again", {"reason": why, "model": spec.model}, now)
    return fetch_job(connection, job_id)
