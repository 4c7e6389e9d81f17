"""Deletion of events that were counted, of jobs that ended long ago.

Events are looked through in the order of their numbers, a part at a time, so that no transaction is long.
The events of jobs that have not ended stay, however old they are. The number of the last event that was
deleted is kept: a reader that goes on from a lower number may have missed events.
"""

from dataclasses import dataclass

from sqlalchemy import Connection, text

from app.store.transaction import Transaction
from app.store.upkeep.counters import COUNTERS, is_held

LIMIT = 2000
RETIRED = "retired"
PART = text("""
    select max(seq) as last, min(at) as oldest from (
        select seq, at from events where seq > :after and seq <= :counted order by seq limit :limit
    ) part
""")
DELETE = text("""
    delete from events where seq > :after and seq <= :last and at < :before and not exists (
        select 1 from jobs j where j.id = events.job_id and (
            j.status not in ('succeeded', 'failed', 'canceled')
            or coalesce(j.finished_at, j.created_at) >= :before
        )
    ) returning seq
""")
NOTE = text("""
    insert into event_positions (name, seq) values (:name, :seq)
    on conflict (name) do update set seq = excluded.seq where excluded.seq > event_positions.seq
""")
LAST_RETIRED = text("select seq from event_positions where name = :name")


@dataclass(frozen=True, slots=True)
class Retired:
    """How many events were deleted, and after which number to go on; None at the end of the old events."""

    deleted: int
    next_after: int | None


def retire(
    tx: Transaction, holder: str, *, counted: int, keep_seconds: float, after: int = 0, limit: int = LIMIT
) -> Retired:
    """Look through the next `limit` events numbered above `after`, and delete those that nobody needs.

    Needed are events above `counted`, those younger than `keep_seconds`, and those of jobs that have not
    ended or ended less than `keep_seconds` ago. Does nothing unless `holder` exports the counters.
    """
    before = tx.now - keep_seconds
    part = tx.execute(PART, {"after": after, "counted": counted, "limit": limit}).one()
    if part.last is None or part.oldest >= before or not is_held(tx, COUNTERS, holder):
        return Retired(0, None)
    gone = tx.execute(DELETE, {"after": after, "last": part.last, "before": before}).scalars().all()
    if gone:
        tx.execute(NOTE, {"name": RETIRED, "seq": max(gone)})
    return Retired(len(gone), int(part.last))


def last_retired(connection: Connection) -> int:
    """Return the highest number of a deleted event, or 0 if none was deleted."""
    return int(connection.execute(LAST_RETIRED, {"name": RETIRED}).scalar() or 0)
