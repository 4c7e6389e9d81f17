"""Webhooks that are still to be delivered: an outbox, filled in the transaction that ends a job.

Runs inside the caller's transaction.
"""

from dataclasses import dataclass

from sqlalchemy import Connection, text

from app.jobs import JobSpec

INSERT = text("""
    insert into deliveries (job_id, url, outcome, due_at, attempts) values (:job_id, :url, :outcome, :now, 0)
""")
DUE = text(
    "select id, job_id, url, outcome, attempts from deliveries where due_at <= :now order by due_at limit 1"
)
TAKE = text(
    "update deliveries set due_at = :due_at, attempts = attempts + 1 where id = :id and attempts = :attempts"
)
POSTPONE = text("update deliveries set due_at = :due_at where id = :id")
REMOVE = text("delete from deliveries where id = :id")
HELD_SECONDS = 120.0


@dataclass(frozen=True, slots=True)
class Delivery:
    """One message to one address; `attempts` includes the one that is being made."""

    id: int
    job_id: str
    url: str
    outcome: str
    attempts: int


def enqueue(connection: Connection, job_id: str, spec: JobSpec, outcome: str, now: float) -> None:
    """Note that the end of a job is to be told, where the job asked for that."""
    if spec.webhook_url is not None:
        connection.execute(
            INSERT, {"job_id": job_id, "url": spec.webhook_url, "outcome": outcome, "now": now}
        )


def take(connection: Connection, now: float) -> Delivery | None:
    """The next delivery that is due; no other process gets it for a while, even if this one dies."""
    row = connection.execute(DUE, {"now": now}).one_or_none()
    if row is None:
        return None
    held = {"id": row.id, "attempts": row.attempts, "due_at": now + HELD_SECONDS}
    if not connection.execute(TAKE, held).rowcount:
        return None
    return Delivery(row.id, row.job_id, row.url, row.outcome, row.attempts + 1)


def settle(connection: Connection, delivery_id: int, retry_at: float | None) -> None:
    """Done with a delivery, or to be tried again at `retry_at`."""
    if retry_at is None:
        connection.execute(REMOVE, {"id": delivery_id})
    else:
        connection.execute(POSTPONE, {"id": delivery_id, "due_at": retry_at})
