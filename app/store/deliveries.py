"""The outbox of webhooks. The transaction that ends a job also adds its delivery."""

from dataclasses import dataclass

from sqlalchemy import text

from app.jobs import JobSpec
from app.store.transaction import Locking, Transaction

INSERT = text("""
    insert into deliveries (job_id, url, outcome, due_at, attempts)
        select id, :url, :outcome, :now, 0 from jobs where id = :job_id and deleted_at is null
""")
ANY_DUE = text("select 1 from deliveries where due_at <= :now limit 1")
DUE = Locking.of(
    "select id, job_id, url, outcome, attempts from deliveries where due_at <= :now order by due_at limit 1",
    skip=True,
)
TAKE = text("update deliveries set due_at = :due_at, attempts = attempts + 1 where id = :id")
POSTPONE = text("update deliveries set due_at = :due_at where id = :id")
REMOVE = text("delete from deliveries where id = :id")
HELD_SECONDS = 120.0


@dataclass(frozen=True, slots=True)
class Delivery:
    """One webhook call; `attempts` includes the current one."""

    id: int
    job_id: str
    url: str
    outcome: str
    attempts: int


def enqueue(tx: Transaction, job_id: str, spec: JobSpec, outcome: str) -> None:
    """Add a delivery for a job that has ended, if it has a `webhook_url` and was not deleted."""
    if spec.webhook_url is not None:
        tx.execute(INSERT, {"job_id": job_id, "url": spec.webhook_url, "outcome": outcome, "now": tx.now})


def take(tx: Transaction) -> Delivery | None:
    """Return the next due delivery, or None, and reserve it for `HELD_SECONDS`.

    No other process receives it in that time, even if this one dies.
    """
    row = tx.execute(DUE, {"now": tx.now}).one_or_none()
    if row is None:
        return None
    tx.execute(TAKE, {"id": row.id, "due_at": tx.now + HELD_SECONDS})
    return Delivery(row.id, row.job_id, row.url, row.outcome, row.attempts + 1)


def settle(tx: Transaction, delivery_id: int, retry_seconds: float | None) -> None:
    """Postpone a delivery by `retry_seconds`, or remove it if `retry_seconds` is None."""
    if retry_seconds is None:
        tx.execute(REMOVE, {"id": delivery_id})
    else:
        tx.execute(POSTPONE, {"id": delivery_id, "due_at": tx.now + retry_seconds})
