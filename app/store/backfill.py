"""A job that waits for memory lets smaller ones run, and is not passed over for ever.

One transaction puts the waiting job back into the queue, at its old place, and leases a smaller one to its
worker: no other worker comes between, and the waiting job may meanwhile be run by one that has the memory. It
makes way at most `max_skips` times; then it keeps its worker until it fits or its wait is over.
"""

from sqlalchemy import text

from app.jobs import Claim
from app.store import leases
from app.store.transaction import Transaction

# A job whose needs are unknown could need as much as the one that waits.
SMALLER = text("""
    select id, model, priority, skips, queued_at from jobs
    where status = 'queued' and id <> :id and model = :model and needed_bytes <= :room_bytes
    order by rank, id limit 1
""")
WAITING = text("""
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
    """The best queued job of the loaded `model` that needs at most `room_bytes`, leased to the worker in
    place of the one that waits; None where there is none, the waiting job was passed over often enough, the
    device is paused, or the job is no longer the caller's. The waiting job's attempt does not count.
    """
    waiting = tx.execute(WAITING, {"id": job_id, "token": token}).one_or_none()
    if waiting is None or waiting.skips >= tx.rules.max_skips:
        return None
    if tx.execute(leases.IS_PAUSED, {"id": worker_id}).one_or_none() is not None:
        return None
    wanted = {"id": job_id, "model": model, "room_bytes": room_bytes}
    smaller = tx.execute(SMALLER, wanted).mappings().one_or_none()
    if smaller is None:
        return None
    leases.release(tx, job_id, token, "made_way_for_a_smaller_job", refund=True)
    tx.execute(leases.PASS_OVER, {"id": job_id})
    return leases.take(tx, smaller, worker_id, lease_seconds)
