"""What workers do to the job table: claim, report, finish, give back. Runs inside the caller's transaction.

A claim raises the job's token. Every later report names its token, and one that is no longer the job's
changes nothing: a worker that was thought dead cannot finish what another one runs now.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import Connection, RowMapping, bindparam, text

from app.jobs import Claim, JobStatus, Json, Stage
from app.store import deliveries
from app.store.rows import append_event, dump, fetch_job

_ELIGIBLE = """
    status = 'queued'
    and (cast(:capacity as bigint) is null or needed_bytes is null or needed_bytes <= :capacity)
"""
_IN_TURN = "order by rank, id limit 1"


def _candidate(extra: str, *, some_models: bool, lock: str) -> Any:
    models = " and model in :models" if some_models else ""
    columns = "id, model, priority, skips, queued_at"
    query = text(f"select {columns} from jobs where {_ELIGIBLE}{models}{extra} {_IN_TURN}{lock}")
    return query.bindparams(bindparam("models", expanding=True)) if some_models else query


# The only text that differs between databases: where several writers run at once, a row another one took is
# passed by.
_LOCK = {"postgresql": " for update skip locked"}
_SAME_MODEL = " and model = :loaded and priority >= :priority"
_QUERIES = {
    (dialect, some_models): (
        _candidate("", some_models=some_models, lock=lock),
        _candidate(_SAME_MODEL, some_models=some_models, lock=lock),
    )
    for dialect, lock in {"sqlite": "", **_LOCK}.items()
    for some_models in (False, True)
}
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
EXPIRED = text("select id from jobs where status = 'running' and lease_until < :now")
RUNNING_OF = text("select id from jobs where status = 'running' and worker_id = :worker_id")


def claim(
    connection: Connection,
    worker_id: str,
    *,
    models: Sequence[str] | None,
    loaded_model: str | None,
    capacity_bytes: int | None,
    now: float,
    lease_seconds: float,
    max_skips: int,
) -> Claim | None:
    """Take the best job the device can hold: by rank, but a job of the loaded model and no lower priority
    goes first, until the one it passes over has been passed over `max_skips` times."""
    if models is not None and not models:
        return None
    in_turn, of_loaded = _QUERIES[connection.dialect.name, models is not None]
    parameters: dict[str, Any] = {"capacity": capacity_bytes}
    if models is not None:
        parameters["models"] = list(models)
    chosen = connection.execute(in_turn, parameters).mappings().one_or_none()
    if chosen is None:
        return None
    if loaded_model is not None and chosen["model"] != loaded_model and chosen["skips"] < max_skips:
        wanted = {**parameters, "loaded": loaded_model, "priority": chosen["priority"]}
        preferred = connection.execute(of_loaded, wanted).mappings().one_or_none()
        if preferred is not None:
            connection.execute(PASS_OVER, {"id": chosen["id"]})
            chosen = preferred
    return _take(connection, chosen, worker_id, now, lease_seconds)


def _take(connection: Connection, row: RowMapping, worker_id: str, now: float, lease_seconds: float) -> Claim:
    job_id = row["id"]
    connection.execute(
        TAKE, {"id": job_id, "worker_id": worker_id, "lease_until": now + lease_seconds, "now": now}
    )
    job = fetch_job(connection, job_id)
    data = {
        "worker_id": worker_id,
        "attempt": job.attempts,
        "queued_seconds": max(0.0, now - row["queued_at"]),
    }
    append_event(connection, job_id, "claimed", {**data, "model": row["model"]}, now)
    return Claim(job, job.token)


def extend(connection: Connection, job_id: str, token: int, lease_until: float) -> tuple[bool, bool]:
    """Prolong a lease; `(cancel requested, job lost)`."""
    key = {"id": job_id, "token": token}
    if not connection.execute(EXTEND, {**key, "lease_until": lease_until}).rowcount:
        return False, True
    return bool(connection.execute(CANCEL_WANTED, key).scalar()), False


def report(
    connection: Connection,
    job_id: str,
    token: int,
    *,
    stage: Stage,
    progress: float,
    kind: str,
    data: Mapping[str, Any],
    now: float,
) -> bool:
    """Set stage and progress and add the event; False where the token is no longer the job's."""
    row = {"id": job_id, "token": token, "stage": stage, "progress": min(1.0, max(0.0, progress))}
    if not connection.execute(REPORT, row).rowcount:
        return False
    append_event(connection, job_id, kind, {"stage": stage, "progress": row["progress"], **data}, now)
    return True


def add_event(
    connection: Connection, job_id: str, token: int, kind: str, data: Mapping[str, Any], now: float
) -> bool:
    """Add an event to a job that the caller still holds."""
    if connection.execute(CANCEL_WANTED, {"id": job_id, "token": token}).one_or_none() is None:
        return False
    append_event(connection, job_id, kind, data, now)
    return True


def checkpoint(
    connection: Connection, job_id: str, token: int, path: str, data: Mapping[str, Any], now: float
) -> bool:
    """Note that the job's latents are safe on disk, and how they were made; from here on only the decode can
    be lost.
    """
    row = {"id": job_id, "token": token, "path": path, "denoise": dump(data)}
    if not connection.execute(SAVE_LATENTS, row).rowcount:
        return False
    append_event(connection, job_id, "denoised", data, now)
    return True


def finish(
    connection: Connection,
    job_id: str,
    token: int,
    *,
    status: JobStatus,
    error: Json | None,
    decode: Json | None,
    result: Json | None,
    durations: Mapping[str, float],
    now: float,
    ttl_seconds: float | None,
) -> bool:
    """End a job; False where the token is no longer the job's."""
    if not status.is_terminal:
        raise ValueError(f"{status} does not end a job")
    job = fetch_job(connection, job_id)
    row = {
        "id": job_id,
        "token": token,
        "status": status,
        "progress": 1.0 if status is JobStatus.SUCCEEDED else job.progress,
        "now": now,
        "expires_at": None if ttl_seconds is None else now + ttl_seconds,
        "decode": dump(decode),
        "result": dump(result),
        "error": dump(error),
    }
    if not connection.execute(FINISH, row).rowcount:
        return False
    if status is JobStatus.CANCELED:
        append_event(connection, job_id, "canceled", {"stage": job.stage}, now)
    data: Json = {
        "outcome": status,
        "model": job.spec.model,
        "duration_seconds": max(0.0, now - job.created_at),
        "durations": dict(durations),
        "decode": decode,
        "error": error,
    }
    append_event(connection, job_id, "finished", data, now)
    deliveries.enqueue(connection, job_id, job.spec, status, now)
    return True


def give_back(
    connection: Connection,
    job_id: str,
    token: int,
    reason: str,
    *,
    refund: bool,
    now: float,
    max_attempts: int,
    ttl_seconds: float | None,
) -> bool:
    """Return a running job to the queue, or end it where it was to be canceled or has used up its attempts.

    `refund`: the attempt does not count, as the worker stops in good order.
    """
    job = fetch_job(connection, job_id)
    if job.token != token or job.status is not JobStatus.RUNNING:
        return False
    ending: tuple[JobStatus, Json | None] | None = None
    if job.cancel_requested:
        ending = (JobStatus.CANCELED, None)
    elif job.attempts >= max_attempts and not refund:
        message = f"the job was started {job.attempts} times and its worker was lost each time ({reason})"
        ending = (JobStatus.FAILED, {"code": "too_many_attempts", "message": message})
    if ending is not None:
        return finish(
            connection,
            job_id,
            token,
            status=ending[0],
            error=ending[1],
            decode=None,
            result=None,
            durations={},
            now=now,
            ttl_seconds=ttl_seconds,
        )
    attempts = job.attempts - 1 if refund else job.attempts
    connection.execute(GIVE_BACK, {"id": job_id, "token": token, "attempts": attempts, "now": now})
    append_event(connection, job_id, "requeued", {"reason": reason, "attempt": job.attempts}, now)
    return True
