"""Backfill: a worker whose job waits for memory runs smaller jobs in the meantime.

One transaction requeues the waiting job at its old rank and leases a smaller one to the same worker. No other
worker can claim in between, and another worker with enough memory may claim the requeued job. A job yields at
most `max_skips` times; after that it keeps its worker until it fits or its waiting time ends.
"""

from app.jobs import Claim
from app.store import claims, leases
from app.store.transaction import Locking, Transaction

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
