"""Operations of workers on the jobs they hold: report, finish, release.

Longer than 300 lines: a worker's reports of one job follow one rule.

A claim increments the job's fencing token, and every later report carries the token. A report with an old
token changes nothing, so a worker that lost its lease cannot finish a job that another worker runs now.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from sqlalchemy import text

from app.attempts import DENOISED, HELD_SECONDS, Setbacks, Stop, Verdict, description, judge
from app.jobs import STAGE_PROGRESS, Job, JobError, JobStatus, Json, Stage
from app.store import deliveries
from app.store.rows import append_event, dump, load, lock_job
from app.store.transaction import Locking, Transaction

ANY_QUEUED = text("select 1 from jobs where status = 'queued' limit 1")
EXTEND = text("""
    update jobs set lease_until = :lease_until where id = :id and token = :token and status = 'running'""")
HELD = Locking.of(
    "select cancel_requested from jobs where id = :id and token = :token and status = 'running'"
)
REPORT = text("""
    update jobs set stage = :stage, progress = :progress, download = coalesce(:download, download)
    where id = :id and token = :token and status = 'running'
""")
SETBACKS = Locking.of(
    "select attempts, setbacks from jobs where id = :id and token = :token and status = 'running'"
)
SAVE_LATENTS = text("""
    update jobs set latents_path = :path, denoise = :denoise, attempts = :attempts, setbacks = :setbacks,
        rank = coalesce(:rank, rank)
    where id = :id and token = :token and status = 'running'
""")
SAVE_STEPS = text("""
    update jobs set attempts = :attempts, setbacks = :setbacks, rank = coalesce(:rank, rank)
    where id = :id and token = :token and status = 'running'
""")
FINISH = text("""
    update jobs set status = :status, stage = 'finished', progress = :progress, finished_at = :now,
        expires_at = :expires_at,
        lease_until = null, decode = :decode,
        result = coalesce(:result, result), error = :error
    where id = :id and token = :token and status = 'running'
""")
GIVE_BACK = text("""
    update jobs set status = 'queued', stage = :stage, progress = :progress, worker_id = null,
        lease_until = null, attempts = :attempts, setbacks = :setbacks, rank = :rank, token = token + 1,
        queued_at = :now
    where id = :id and token = :token and status = 'running'
""")
RANK = text("select rank from jobs where id = :id")
# Held jobs, which are few, are the last.
LAST_RANK = text("""
    select rank from jobs where status = 'queued' and stage <> 'held' order by rank desc limit 1
""")
BEHIND_SECONDS = 1e-3
VIDEO_SIZE = ("frames", "width", "height")  # of a job's result, told in the event of its end
STEPS_OF_DENOISE = ("steps", "steps_computed", "resumed_from_step")  # of a job's `denoise`, likewise
LOCK_WAIT_SECONDS = 2.0  # of a transaction that acts on what was seen before it
ANY_EXPIRED = text("select 1 from jobs where status = 'running' and lease_until < :now limit 1")
EXPIRED = Locking.of(
    "select id, token from jobs where status = 'running' and lease_until < :now order by id", skip=True
)
RUNNING_OF = Locking.of(
    "select id, token from jobs where status = 'running' and worker_id = :worker_id order by id"
)


def extend(tx: Transaction, job_id: str, token: int, lease_seconds: float) -> tuple[bool, bool]:
    """Extend a lease; return `(cancel requested, job lost)`."""
    key = {"id": job_id, "token": token}
    if not tx.execute(EXTEND, {**key, "lease_until": tx.now + lease_seconds}).rowcount:
        return False, True
    return bool(tx.execute(HELD, key).scalar()), False


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
    """Set a job's stage and progress (0 to 1) and add an event; return False if the caller lost the job.

    `download` in `data` is kept with the job.
    """
    row = {
        "id": job_id,
        "token": token,
        "stage": stage,
        "progress": min(1.0, max(0.0, progress)),
        "download": dump((data or {}).get("download")),
    }
    if not tx.execute(REPORT, row).rowcount:
        return False
    append_event(tx, job_id, kind, {"stage": stage, "progress": row["progress"], **(data or {})})
    return True


def event(tx: Transaction, job_id: str, token: int, kind: str, data: Mapping[str, Any]) -> bool:
    """Add an event to a running job; return False if the caller lost the job."""
    if tx.execute(HELD, {"id": job_id, "token": token}).one_or_none() is None:
        return False
    append_event(tx, job_id, kind, data)
    return True


def checkpoint(
    tx: Transaction,
    job_id: str,
    token: int,
    latents_path: str | None,
    data: Mapping[str, Any],
    *,
    reached: float = DENOISED,
) -> bool:
    """Record that the denoised latents are on disk, synced; return False if the caller lost the job.

    From here on a failure costs only the decode. `data` describes the denoising run. If no earlier attempt
    reached as far (0 to 1), earlier setbacks no longer count. A pipeline that decodes in place has no
    latents, and has reached nothing that lasts (0).
    """
    row = _after_progress(tx, job_id, token, reached)
    if row is None:
        return False
    tx.execute(SAVE_LATENTS, {**row, "path": latents_path, "denoise": dump(data)})
    append_event(tx, job_id, "denoised", data)
    return True


def steps_saved(tx: Transaction, job_id: str, token: int, data: Json, *, reached: float) -> bool:
    """Record that steps of the denoise are on disk, synced; return False if the caller lost the job.

    `data` goes into the event. `reached` (0 to 1, below `DENOISED`) counts as in `checkpoint`.
    """
    row = _after_progress(tx, job_id, token, reached)
    if row is None:
        return False
    tx.execute(SAVE_STEPS, row)
    append_event(tx, job_id, "checkpoint", data)
    return True


def _after_progress(tx: Transaction, job_id: str, token: int, reached: float) -> Json | None:
    """Return the job's row after durable progress; None if the caller lost the job."""
    key = {"id": job_id, "token": token}
    found = tx.execute(SETBACKS, key).one_or_none()
    if found is None:
        return None
    after = (setbacks := Setbacks.of(load(found.setbacks))).after_progress(reached)
    return {
        **key,
        "attempts": found.attempts if after is setbacks else 1,
        "setbacks": dump(after.as_json() or None),
        "rank": None if after is setbacks else setbacks.rank,
    }


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
    job = lock_job(tx, job_id)
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
    earlier = (job.handover or {}).get("durations", {})
    data: Json = {
        "outcome": status,
        "model": job.spec.model,
        **({"earlier_durations": earlier} if earlier else {}),
        "duration_seconds": max(0.0, tx.now - job.created_at),
        "durations": dict(durations or {}),
        "decode": decode,
        "error": error_json,
        "denoise": _denoise_of_attempt(job, {**earlier, **(durations or {})}),
        "video": None if result is None else {name: result.get(name) for name in VIDEO_SIZE},
    }
    append_event(tx, job_id, "finished", data)
    deliveries.enqueue(tx, job_id, job.spec, status)
    return True


def _denoise_of_attempt(job: Job, durations: Mapping[str, float]) -> Json | None:
    """How many steps this attempt computed; None if it denoised nothing or did not come to its end."""
    if job.denoise is None or not durations.get(Stage.DENOISING):
        return None
    return {name: job.denoise.get(name) for name in STEPS_OF_DENOISE}


def release(
    tx: Transaction, job_id: str, token: int, reason: str, *, refund: bool = False, stop: Stop | None = None
) -> bool:
    """Requeue a running job; return False if the caller lost it.

    `app.attempts` decides by the reason whether the job keeps its place, goes behind the others, is held or
    fails (`too_many_attempts`). A job whose cancellation was requested ends instead. `refund`: do not count
    this attempt, because the worker stops in an orderly way. `stop`: the end of the service that caused this.
    """
    job = lock_job(tx, job_id)
    if job.token != token or job.status is not JobStatus.RUNNING:
        return False
    if job.cancel_requested:
        return finish(tx, job_id, token, status=JobStatus.CANCELED)
    limit, before = tx.rules.max_attempts, Setbacks.of(job.setbacks)
    setbacks, verdict = judge(before, reason, max_attempts=limit, refund=refund, stop=stop)
    if verdict is Verdict.FAILED:
        message = f"{description(setbacks)}, the last time in a try alone ({reason})"
        error = JobError("too_many_attempts", message)
        return finish(tx, job_id, token, status=JobStatus.FAILED, error=error)
    stays_held = before.held and verdict is Verdict.HELD
    _requeue(tx, job, setbacks, verdict, stays_held=stays_held)
    tx.announce_queued()
    append_event(tx, job_id, "requeued", {"reason": reason, "attempt": job.attempts})
    if verdict is Verdict.HELD and not stays_held:
        data = {"reason": reason, "why": description(setbacks), "max_attempts": limit}
        append_event(tx, job_id, "held", data)
    return True


def _requeue(tx: Transaction, job: Job, setbacks: Setbacks, verdict: Verdict, *, stays_held: bool) -> None:
    rank = float(tx.execute(RANK, {"id": job.id}).scalar_one())
    if verdict is Verdict.AGAIN:
        if setbacks.rank is not None and not setbacks.deaths:  # a stop without the job has acquitted it
            rank, setbacks = setbacks.rank, replace(setbacks, rank=None)
    elif not stays_held:  # else it is behind the others already
        setbacks = replace(setbacks, rank=rank if setbacks.rank is None else setbacks.rank)
        rank = _rank_behind(tx, rank, verdict)
    waits = job.handover is not None and not job.kept_from_decoders  # for a worker that decodes
    stage = Stage.DENOISED if waits else Stage.QUEUED
    row = {
        "id": job.id,
        "token": job.token,
        "stage": Stage.HELD if verdict is Verdict.HELD else stage,
        "progress": STAGE_PROGRESS[stage][0] if waits else 0.0,
        "attempts": setbacks.attempts,
        "setbacks": dump(setbacks.as_json() or None),
        "rank": rank,
        "now": tx.now,
    }
    tx.execute(GIVE_BACK, row)


def _rank_behind(tx: Transaction, rank: float, verdict: Verdict) -> float:
    last = tx.execute(LAST_RANK).scalar()
    behind = rank if last is None else max(rank, last + BEHIND_SECONDS)
    return behind + HELD_SECONDS if verdict is Verdict.HELD else behind


def release_all(
    tx: Transaction, query: Locking, parameters: Json, reason: str, stop: Stop | None = None
) -> list[str]:
    """Release every job that the query selects (columns id, token); return their ids."""
    rows = tx.execute(query, parameters).all()
    for row in rows:
        release(tx, row.id, row.token, reason, stop=stop)
    return [str(row.id) for row in rows]


def requeue_expired(tx: Transaction, looked_at: float | None = None) -> list[str]:
    """Requeue every job whose lease has expired; return their ids.

    None, if this transaction comes long after its caller looked at the clock (`looked_at`, database time): it
    waited for a lock, as did the workers that want to renew their leases.
    """
    if looked_at is not None and tx.now - looked_at > LOCK_WAIT_SECONDS:
        return []
    return release_all(tx, EXPIRED, {"now": tx.now}, "lease_expired")
