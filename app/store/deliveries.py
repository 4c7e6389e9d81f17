"""The outbox of webhooks. The transaction that ends a job also adds its delivery.

The job's column `webhook` tells how its newest delivery goes, and every attempt adds an event `webhook`.
"""

from dataclasses import dataclass
from enum import StrEnum

from sqlalchemy import text

from app.jobs import JobSpec
from app.store.rows import append_event, dump, load
from app.store.transaction import Locking, Transaction

INSERT = text("""
    insert into deliveries (job_id, url, outcome, due_at, attempts)
        select id, :url, :outcome, :now, 0 from jobs where id = :job_id and deleted_at is null
    returning id
""")
ANY_DUE = text("select 1 from deliveries where due_at <= :now limit 1")
DUE = Locking.of(
    """
    select id, job_id, url, outcome, attempts, (select owner from jobs where jobs.id = job_id) as owner
    from deliveries where due_at <= :now order by due_at limit 1""",
    skip=True,
)
TAKE = text("update deliveries set due_at = :due_at, attempts = attempts + 1 where id = :id")
POSTPONE = text("update deliveries set due_at = :due_at where id = :id")
REMOVE = text("delete from deliveries where id = :id")
SELECT = text("select job_id, outcome, attempts from deliveries where id = :id")
STATE = Locking.of("select webhook from jobs where id = :job_id and deleted_at is null")
SET_STATE = text("update jobs set webhook = :webhook where id = :job_id")
HELD_SECONDS = 120.0
ERROR_CHARACTERS = 300


class DeliveryState(StrEnum):
    """How a delivery goes. `failed`: the last attempt failed, and another will be made."""

    PENDING = "pending"
    FAILED = "failed"
    DELIVERED = "delivered"
    GIVEN_UP = "given_up"


@dataclass(frozen=True, slots=True)
class Delivery:
    """One webhook call; `attempts` includes the current one."""

    id: int
    job_id: str
    url: str
    outcome: str
    attempts: int
    owner: str | None = None


@dataclass(frozen=True, slots=True)
class Attempt:
    """How one attempt went: `error` is None if the receiver took the message.

    After an error `retry_seconds` says when the next attempt is due; None if there will be none.
    """

    error: str | None = None
    retry_seconds: float | None = None

    @property
    def state(self) -> DeliveryState:
        """What the attempt makes of the delivery."""
        if self.error is None:
            return DeliveryState.DELIVERED
        return DeliveryState.GIVEN_UP if self.retry_seconds is None else DeliveryState.FAILED


def enqueue(tx: Transaction, job_id: str, spec: JobSpec, outcome: str) -> None:
    """Add a delivery for a job that has ended, if it has a `webhook_url` and was not deleted."""
    if spec.webhook_url is None:
        return
    row = {"job_id": job_id, "url": spec.webhook_url, "outcome": outcome, "now": tx.now}
    delivery_id = tx.execute(INSERT, row).scalar_one_or_none()
    if delivery_id is None:
        return
    state = {"delivery": delivery_id, "state": DeliveryState.PENDING, "attempts": 0, "last_error": None}
    tx.execute(SET_STATE, {"job_id": job_id, "webhook": dump({**state, "next_attempt_at": tx.now})})


def take(tx: Transaction) -> Delivery | None:
    """Return the next due delivery, or None, and reserve it for `HELD_SECONDS`.

    No other process receives it in that time, even if this one dies.
    """
    row = tx.execute(DUE, {"now": tx.now}).one_or_none()
    if row is None:
        return None
    tx.execute(TAKE, {"id": row.id, "due_at": tx.now + HELD_SECONDS})
    return Delivery(row.id, row.job_id, row.url, row.outcome, row.attempts + 1, row.owner)


def settle(tx: Transaction, delivery_id: int, attempt: Attempt) -> None:
    """Record an attempt: the delivery is postponed, or removed if it has arrived or is given up."""
    delivery = tx.execute(SELECT, {"id": delivery_id}).one_or_none()
    if delivery is None:
        return
    if attempt.state is DeliveryState.FAILED:
        due_at = tx.now + (attempt.retry_seconds or 0.0)
        tx.execute(POSTPONE, {"id": delivery_id, "due_at": due_at})
    else:
        due_at = None
        tx.execute(REMOVE, {"id": delivery_id})
    row = tx.execute(STATE, {"job_id": delivery.job_id}).one_or_none()
    if row is None:  # the job was deleted
        return
    error = attempt.error and " ".join(attempt.error.split())[:ERROR_CHARACTERS]
    told = {"state": attempt.state, "attempts": delivery.attempts, "last_error": error}
    if (load(row.webhook) or {}).get("delivery", delivery_id) == delivery_id:  # not of an earlier end
        state = {"delivery": delivery_id, **told, "next_attempt_at": due_at}
        tx.execute(SET_STATE, {"job_id": delivery.job_id, "webhook": dump(state)})
    append_event(tx, delivery.job_id, "webhook", {"outcome": delivery.outcome, **told})
