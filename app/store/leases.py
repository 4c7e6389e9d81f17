"""Operations of workers on the job table: claim, report, finish, release.

A claim increments the job's fencing token, and every later report carries the token. A report with an old
token changes nothing, so a worker that lost its lease cannot finish a job that another worker runs now.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import Connection, Executable, RowMapping, bindparam, text

from app.jobs import Claim, JobError, JobStatus, Json, Stage
from app.store import deliveries
from app.store.rows import append_event, dump, fetch_job
from app.store.transaction import Transaction

_ELIGIBLE = """
    status = 'queued'
    and (cast(:capacity as bigint) is null or needed_bytes is null or needed_bytes <= :capacity)
"""
_IN_ORDER = "order by rank, id limit 1"


def _candidate(extra: str, *, some_models: bool) -> Any:
    models = " and model in :models" if some_models else ""
    columns = "id, model, priority, skips, queued_at"
    query = text(f"select {columns} from jobs where {_ELIGIBLE}{models}{extra} {_IN_ORDER}")
    return query.bindparams(bindparam("models", expanding=True)) if some_models else query


_SAME_MODEL = " and model = :loaded and priority >= :priority"
_QUERIES = {
    some_models: (
        _candidate("", some_models=some_models),
        _candidate(_SAME_MODEL, some_models=some_models),
    )
    for some_models in (False, True)
}
IS_PAUSED = text("""
    select 1 from workers w join paused_devices p on p.device_name = w.device_name where w.id = :id
""")
ANY_QUEUED = text("select 1 from jobs where status = 'queued' limit 1")
PASS_OVER = text("update jobs set skips = skips + 1 where id = :id")
TAKE = text("""
    update jobs set status = 'running', stage = 'loading', token = token + 1, attempts = attempts + 1,
        worker_id = :worker_id, lease_until = :lease_until, started_at = coalesce(started_at, :now)
    where id = :id and status = 'queued'
""")
EXTEND = text(
    "update jobs set lease_until = :lease_until where id = :id and token = :token and status = 'running'"
)
CANCEL_WANTED = text(
    "select cancel_requested from jobs where id = :id and token = :token and status = 'running'"
)
REPORT = text("""
    update jobs set stage = :stage, progress = :progress
    where id = :id and token = :token and status = 'running'
""")
SAVE_LATENTS = text("""
    update jobs set latents_path = :path, denoise = :denoise
    where id = :id and token = :token and status = 'running'
""")
FINISH = text("""
    update jobs set status = :status, stage = 'finished', progress = :progress, finished_at = :now,
        expires_at = :expires_at, lease_until = null, decode = :decode,
        result = coalesce(:result, result), error = :error
    where id = :id and token = :token and status = 'running'
""")
GIVE_BACK = text("""
    update jobs set status = 'queued', stage = 'queued', worker_id = null, lease_until = null,
        attempts = :attempts, token = token + 1, queued_at = :now
    where id = :id and token = :token and status = 'running'
""")
EXPIRED = text("select id, token from jobs where status = 'running' and lease_until < :now")
RUNNING_OF = text("select id, token from jobs where status = 'running' and worker_id = :worker_id")


def any_for(
    connection: Connection,
    *,
    models: Sequence[str] | None = None,
    capacity_bytes: int | None = None,
    **_preferences: object,
) -> bool:
    """Return whether a job is queued that this worker could run."""
    return _first_eligible(connection, models, capacity_bytes) is not None


def _first_eligible(
    connection: Connection, models: Sequence[str] | None, capacity_bytes: int | None
) -> RowMapping | None:
    if models is not None and not models:
        return None
    query, _ = _QUERIES[models is not None]
    return connection.execute(query, _filters(models, capacity_bytes)).mappings().one_or_none()


def _filters(models: Sequence[str] | None, capacity_bytes: int | None) -> dict[str, Any]:
    named = {} if models is None else {"models": list(models)}
    return {"capacity": capacity_bytes, **named}


def claim(
    tx: Transaction,
    worker_id: str,
    *,
    models: Sequence[str] | None = None,
    loaded_model: str | None = None,
    capacity_bytes: int | None = None,
    lease_seconds: float = 30.0,
) -> Claim | None:
    """Lease the best queued job to this worker; return None if there is none or its device is paused.

    Only jobs that need at most `capacity_bytes` are considered. The job with the lowest rank is claimed, with
    one exception: a job that uses the loaded model and has no lower priority goes first, until the job it
    skips has been skipped `max_skips` times.
    """
    if tx.execute(IS_PAUSED, {"id": worker_id}).one_or_none() is not None:
        return None
    chosen = _first_eligible(tx.connection, models, capacity_bytes)
    if chosen is None:
        return None
    if loaded_model is not None and chosen["model"] != loaded_model and chosen["skips"] < tx.rules.max_skips:
        _, of_loaded = _QUERIES[models is not None]
        wanted = {**_filters(models, capacity_bytes), "loaded": loaded_model, "priority": chosen["priority"]}
        preferred = tx.execute(of_loaded, wanted).mappings().one_or_none()
        if preferred is not None:
            tx.execute(PASS_OVER, {"id": chosen["id"]})
            chosen = preferred
    return take(tx, chosen, worker_id, lease_seconds)


def take(tx: Transaction, row: RowMapping, worker_id: str, lease_seconds: float) -> Claim:
    """Lease the queued job in `row`, selected in this transaction, to a worker."""
    job_id = row["id"]
    lease_until = tx.now + lease_seconds
    tx.execute(TAKE, {"id": job_id, "worker_id": worker_id, "lease_until": lease_until, "now": tx.now})
    tx.queued.clear()
    job = fetch_job(tx.connection, job_id)
    data = {
        "worker_id": worker_id,
        "attempt": job.attempts,
        "queued_seconds": max(0.0, tx.now - row["queued_at"]),
    }
    append_event(tx, job_id, "claimed", {**data, "model": row["model"]})
    return Claim(job, job.token)


def extend(tx: Transaction, job_id: str, token: int, lease_seconds: float) -> tuple[bool, bool]:
    """Extend a lease; return `(cancel requested, job lost)`."""
    key = {"id": job_id, "token": token}
    if not tx.execute(EXTEND, {**key, "lease_until": tx.now + lease_seconds}).rowcount:
        return False, True
    return bool(tx.execute(CANCEL_WANTED, key).scalar()), False


def progress(
    tx: Transaction,
    job_id: str,
    token: int,
    *,
    stage: Stage,
    progress: float,
    kind: str = "progress",
    data: Mapping[str, Any] | None = None,
) -> bool:
    """Set a job's stage and progress (0 to 1) and add an event; return False if the caller lost the job."""
    row = {"id": job_id, "token": token, "stage": stage, "progress": min(1.0, max(0.0, progress))}
    if not tx.execute(REPORT, row).rowcount:
        return False
    append_event(tx, job_id, kind, {"stage": stage, "progress": row["progress"], **(data or {})})
    return True


def event(tx: Transaction, job_id: str, token: int, kind: str, data: Mapping[str, Any]) -> bool:
    """Add an event to a running job; return False if the caller lost the job."""
    if tx.execute(CANCEL_WANTED, {"id": job_id, "token": token}).one_or_none() is None:
        return False
    append_event(tx, job_id, kind, data)
    return True


def checkpoint(tx: Transaction, job_id: str, token: int, latents_path: str, data: Mapping[str, Any]) -> bool:
    """Record that the denoised latents are on disk, synced; return False if the caller lost the job.

    From here on a failure costs only the decode. `data` describes the denoising run.
    """
    row = {"id": job_id, "token": token, "path": latents_path, "denoise": dump(data)}
    if not tx.execute(SAVE_LATENTS, row).rowcount:
        return False
    append_event(tx, job_id, "denoised", data)
    return True


def finish(
    tx: Transaction,
    job_id: str,
    token: int,
    *,
    status: JobStatus,
    error: JobError | None = None,
    decode: Json | None = None,
    result: Json | None = None,
    durations: Mapping[str, float] | None = None,
) -> bool:
    """End a job; return False if the caller lost it. `durations` are seconds by stage.

    Raises `ValueError` if `status` is not terminal.
    """
    if not status.is_terminal:
        raise ValueError(f"{status} does not end a job")
    job = fetch_job(tx.connection, job_id)
    error_json = None if error is None else error.as_json()
    row = {
        "id": job_id,
        "token": token,
        "status": status,
        "progress": 1.0 if status is JobStatus.SUCCEEDED else job.progress,
        "now": tx.now,
        "expires_at": tx.expires_at,
        "decode": dump(decode),
        "result": dump(result),
        "error": dump(error_json),
    }
    if not tx.execute(FINISH, row).rowcount:
        return False
    if status is JobStatus.CANCELED:
        append_event(tx, job_id, "canceled", {"stage": job.stage})
    data: Json = {
        "outcome": status,
        "model": job.spec.model,
        "duration_seconds": max(0.0, tx.now - job.created_at),
        "durations": dict(durations or {}),
        "decode": decode,
        "error": error_json,
    }
    append_event(tx, job_id, "finished", data)
    deliveries.enqueue(tx, job_id, job.spec, status)
    return True


def release(tx: Transaction, job_id: str, token: int, reason: str, *, refund: bool = False) -> bool:
    """Requeue a running job; return False if the caller lost it.

    The job ends instead if its cancellation was requested, or if it has used up its attempts
    (`too_many_attempts`). `refund`: do not count this attempt, because the worker stops in an orderly way.
    """
    job = fetch_job(tx.connection, job_id)
    if job.token != token or job.status is not JobStatus.RUNNING:
        return False
    if job.cancel_requested:
        return finish(tx, job_id, token, status=JobStatus.CANCELED)
    if job.attempts >= tx.rules.max_attempts and not refund:
        message = f"the job was started {job.attempts} times and lost its worker each time ({reason})"
        error = JobError("too_many_attempts", message)
        return finish(tx, job_id, token, status=JobStatus.FAILED, error=error)
    attempts = job.attempts - 1 if refund else job.attempts
    tx.execute(GIVE_BACK, {"id": job_id, "token": token, "attempts": attempts, "now": tx.now})
    tx.queued.clear()
    append_event(tx, job_id, "requeued", {"reason": reason, "attempt": job.attempts})
    return True


def release_all(tx: Transaction, query: Executable, parameters: Json, reason: str) -> list[str]:
    """Release every job that the query selects (columns id, token); return their ids."""
    rows = tx.execute(query, parameters).all()
    for row in rows:
        release(tx, row.id, row.token, reason)
    return [str(row.id) for row in rows]


def requeue_expired(tx: Transaction) -> list[str]:
    """Requeue every job whose lease has expired; return their ids."""
    return release_all(tx, EXPIRED, {"now": tx.now}, "lease_expired")
