"""Expiry of results: they are marked first and deleted a minute later.

No client is therefore sent a file that is about to be deleted. The files are deleted outside any transaction,
then the row is settled: a crash in between leaves a marked row, and the next turn deletes again. A marked job
cannot be queued again.
"""

from sqlalchemy import Connection, text

from app.store.rows import append_event
from app.store.transaction import Locking, Transaction

GRACE_SECONDS = 60.0
LIMIT = 100

_ENDED = "status in ('succeeded', 'failed', 'canceled')"
DUE = Locking.of(
    f"""
    select id from jobs
    where swept_at is null and expires_at < :now and not expired and {_ENDED}
    order by expires_at limit :limit""",
    skip=True,
)
ANY_DUE = text("select 1 from jobs where swept_at is null and expires_at < :now limit 1")
MARK = text("update jobs set expired = true, latents_path = null where id = :id")
MARKED = text(f"""
    select id from jobs
    where swept_at is null and expires_at < :before and expired and {_ENDED}
    order by expires_at limit :limit
""")
DISCARD = text(f"""
    update jobs set expired = true, latents_path = null, expires_at = :now
    where id = :id and not expired and {_ENDED}
""")
FORGET_PICTURES = text("delete from job_pictures where job_id = :id")
SETTLE = text("update jobs set swept_at = :now where id = :id")


def mark_expired(tx: Transaction) -> list[str]:
    """Mark every result past its expiry time as expired and return the ids; the API no longer serves them."""
    ids = []
    for row in tx.execute(DUE, {"now": tx.now, "limit": LIMIT}).all():
        tx.execute(MARK, {"id": row.id})
        append_event(tx, row.id, "expired", {})
        ids.append(str(row.id))
    return ids


def discard(tx: Transaction, job_id: str) -> bool:
    """Expire an ended job's result now; return False if the job has not ended or has expired already."""
    if not tx.execute(DISCARD, {"id": job_id, "now": tx.now}).rowcount:
        return False
    append_event(tx, job_id, "expired", {})
    return True


def marked(connection: Connection, *, now: float) -> list[str]:
    """Return the ids of results marked at least `GRACE_SECONDS` ago whose files may still be there."""
    wanted = {"before": now - GRACE_SECONDS, "limit": LIMIT}
    return list(connection.execute(MARKED, wanted).scalars())


def settle(tx: Transaction, job_id: str) -> None:
    """Record that the files and images of an expired job are gone."""
    tx.execute(FORGET_PICTURES, {"id": job_id})
    tx.execute(SETTLE, {"id": job_id, "now": tx.now})
