"""Expiry of results: they are marked first and deleted a minute later.

No client is therefore sent a file that is about to be deleted.
"""

from collections.abc import Callable

from sqlalchemy import text

from app.store.rows import append_event
from app.store.transaction import Locking, Transaction

GRACE_SECONDS = 60.0
LIMIT = 100

DUE = Locking.of(
    """
    select id from jobs
    where swept_at is null and expires_at < :now and not expired
        and status in ('succeeded', 'failed', 'canceled')
    order by expires_at limit :limit""",
    skip=True,
)
ANY_DUE = text("select 1 from jobs where swept_at is null and expires_at < :now limit 1")
DELETE = text("update jobs set deleted_at = :now where id = :id and deleted_at is null")
MARK = text("update jobs set expired = true, latents_path = null where id = :id")
MARKED = Locking.of(
    """
    select id from jobs
    where swept_at is null and expires_at < :before and expired
        and status in ('succeeded', 'failed', 'canceled')
    order by expires_at limit :limit""",
    skip=True,
)
DISCARD = text("""
    update jobs set expired = true, latents_path = null, expires_at = :now
    where id = :id and not expired and status in ('succeeded', 'failed', 'canceled')
""")
FORGET_IMAGE = text("delete from images where job_id = :id")
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


def delete(tx: Transaction, job_id: str) -> bool:
    """Delete a job for its client; return False if it was deleted before.

    Its result expires now or, if the job has not ended, as soon as it has. The row stays for the history.
    """
    # In this order: a job that ends later finds `deleted_at`; `discard` finds one that has ended before.
    deleted = bool(tx.execute(DELETE, {"id": job_id, "now": tx.now}).rowcount)
    discard(tx, job_id)
    return deleted


def remove_expired(tx: Transaction, remove: Callable[[str], None]) -> list[str]:
    """Delete results marked at least `GRACE_SECONDS` ago; return their ids.

    The lock prevents a job from being queued again while its files are deleted.
    """
    marked = tx.execute(MARKED, {"before": tx.now - GRACE_SECONDS, "limit": LIMIT}).all()
    ids = [str(row.id) for row in marked]
    for job_id in ids:
        remove(job_id)
        tx.execute(FORGET_IMAGE, {"id": job_id})
        tx.execute(SETTLE, {"id": job_id, "now": tx.now})
    return ids
