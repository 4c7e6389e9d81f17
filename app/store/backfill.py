"""Giving way: a worker's job goes back to the queue, and the worker gets another one at once.

One transaction requeues the job at its old rank and leases the other one to the same worker. No other worker
can claim in between, and another worker may claim the requeued job. Its attempt is not counted.

Backfill: a worker whose job waits for memory runs smaller jobs in the meantime. A job yields so at most
`max_skips` times; after that it keeps its worker until it fits or its waiting time ends.

Preemption: a job whose steps are saved gives way to one of higher priority, at most `MOST_PREEMPTIONS` times.
`app.scheduling.preemption` decides when.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, bindparam, text

from app.jobs import Claim, Stage
from app.store import claims, leases
from app.store.rows import append_event, dump, load
from app.store.transaction import Locking, Transaction

MOST_PREEMPTIONS = 2

# A job with unknown needs is not selected: it could need as much as the waiting one.
SMALLER = Locking.of(
    """
    select id, model, priority, skips, queued_at from jobs
    where status = 'queued' and stage <> 'held' and id <> :id and model = :model
        and needed_bytes <= :room_bytes
    order by rank, id limit 1""",
    skip=True,
)
WAITING = Locking.of("""
    select skips from jobs
    where id = :id and token = :token and status = 'running' and not cancel_requested
""")
# Of the queue's head: what is far behind it does not wait for this job.
URGENT = text(f"""
    select id, model, priority, needed_bytes, queued_at from (
        select id, model, priority, needed_bytes, queued_at, stage, rank from jobs where status = 'queued'
        order by rank, id limit {claims.HEAD}
    ) head
    where priority > :priority and stage <> 'held' and model in :models
        and coalesce(needed_bytes, 0) <= :capacity
    order by rank, id limit 1
""").bindparams(bindparam("models", expanding=True))
RUNNING = text("""
    select worker_id, progress, expected_seconds, stage, download from jobs
    where status = 'running' and worker_id is not null
""")
GIVING_WAY = Locking.of("""
    select priority, preempted from jobs
    where id = :id and token = :token and status = 'running' and not cancel_requested
""")
TAKING_OVER = Locking.of(
    """
    select id, model, priority, queued_at from jobs
    where id = :id and status = 'queued' and stage <> 'held' and priority > :priority
    """,
    skip=True,
)
NOTE_PREEMPTED = text("update jobs set preempted = :preempted where id = :id")


@dataclass(frozen=True, slots=True)
class Urgent:
    """A queued job of higher priority than a running one. `queued_at` is in seconds since the epoch."""

    id: str
    model: str
    priority: int
    needed_bytes: int
    queued_at: float


@dataclass(frozen=True, slots=True)
class Running:
    """How far a running job is (0 to 1), and the seconds that it was expected to take; None if unknown.

    `download_seconds` is how long it still downloads its model before that; None if unknown.
    """

    worker_id: str
    progress: float
    expected_seconds: float | None
    download_seconds: float | None = 0.0


def yield_to_smaller(
    tx: Transaction,
    job_id: str,
    token: int,
    worker_id: str,
    *,
    model: str,
    room_bytes: int,
    lease_seconds: float = 30.0,
) -> Claim | None:
    """Requeue a waiting job and lease a smaller one to its worker.

    The smaller job is the first in the queue that uses the loaded `model` and needs at most `room_bytes`. The
    waiting job's attempt is not counted.

    Returns None if there is no such job, the waiting job has yielded `max_skips` times, the device is paused,
    or the caller no longer holds the waiting job.
    """
    waiting = tx.execute(WAITING, {"id": job_id, "token": token}).one_or_none()
    if waiting is None or waiting.skips >= tx.rules.max_skips:
        return None
    if tx.execute(claims.IS_PAUSED, {"id": worker_id}).one_or_none() is not None:
        return None
    wanted = {"id": job_id, "model": model, "room_bytes": room_bytes}
    smaller = tx.execute(SMALLER, wanted).mappings().one_or_none()
    if smaller is None:
        return None
    leases.release(tx, job_id, token, "made_way_for_a_smaller_job", refund=True)
    tx.execute(claims.PASS_OVER, {"id": job_id})
    return claims.take(tx, smaller, worker_id, lease_seconds)


def urgent(
    connection: Connection, priority: int, *, models: Sequence[str], capacity_bytes: int
) -> Urgent | None:
    """Return the first job at the queue's head with a higher priority that a worker could run; else None."""
    wanted = {"priority": priority, "models": list(models), "capacity": capacity_bytes}
    row = connection.execute(URGENT, wanted).one_or_none()
    if row is None:
        return None
    return Urgent(row.id, row.model, row.priority, row.needed_bytes or 0, row.queued_at)


def running(connection: Connection) -> list[Running]:
    """Return how far the running jobs are."""
    return [
        Running(row.worker_id, row.progress, row.expected_seconds, _download_seconds(row))
        for row in connection.execute(RUNNING)
    ]


def _download_seconds(row: Any) -> float | None:
    if row.stage != Stage.DOWNLOADING:
        return 0.0
    left: float | None = (load(row.download) or {}).get("seconds_left")
    return left


def preempt(
    tx: Transaction,
    job_id: str,
    token: int,
    worker_id: str,
    *,
    by: str,
    step: int,
    steps: int,
    lease_seconds: float = 30.0,
) -> Claim | None:
    """Requeue a running job whose first `step` of `steps` are saved, and lease the job `by` to its worker.

    Returns None, and changes nothing, if the job `by` is no longer queued or has no higher priority, the
    running job was preempted `MOST_PREEMPTIONS` times or is canceled, the device is paused, or the caller no
    longer holds the job.
    """
    giving_way = tx.execute(GIVING_WAY, {"id": job_id, "token": token}).one_or_none()
    if giving_way is None or (times := preemptions(load(giving_way.preempted))) >= MOST_PREEMPTIONS:
        return None
    if tx.execute(claims.IS_PAUSED, {"id": worker_id}).one_or_none() is not None:
        return None
    wanted = {"id": by, "priority": giving_way.priority}
    taking_over = tx.execute(TAKING_OVER, wanted).mappings().one_or_none()
    if taking_over is None:
        return None
    kept = {"step": step, "steps": steps}
    # Who it is that took the place is not the owner's business; before `requeued`, which ends the attempt.
    append_event(tx, job_id, "preempted", {"priority": taking_over["priority"], **kept})
    leases.release(tx, job_id, token, "preempted", refund=True)
    tx.execute(NOTE_PREEMPTED, {"id": job_id, "preempted": dump({"times": times + 1, **kept})})
    return claims.take(tx, taking_over, worker_id, lease_seconds)


def preemptions(preempted: dict[str, int] | None) -> int:
    """Return how often a job gave way, from its column `preempted`."""
    return (preempted or {}).get("times", 0)
