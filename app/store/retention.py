"""The end of results: marked first, deleted later, so that nobody is handed a file that is about to go.

Runs inside the caller's transaction.
"""

from collections.abc import Callable

from sqlalchemy import Connection, text

from app.store.rows import append_event

GRACE_SECONDS = 60.0
LIMIT = 100

DUE = text("""
    select id from jobs
    where expires_at < :now and not expired and status in ('succeeded', 'failed', 'canceled')
    order by expires_at limit :limit
""")
MARK = text("update jobs set expired = true, latents_path = null where id = :id")
MARKED = text("""
    select id from jobs
    where expires_at < :before and expired and status in ('succeeded', 'failed', 'canceled')
    order by expires_at limit :limit
""")
DISCARD = text("""
    update jobs set expired = true, latents_path = null, expires_at = :now
    where id = :id and not expired and status in ('succeeded', 'failed', 'canceled')
""")
FORGET_IMAGE = text("delete from images where job_id = :id")
SETTLE = text("update jobs set expires_at = null where id = :id")


def mark_expired(connection: Connection, now: float) -> list[str]:
    """Say of every result that is past its time that it has expired; from then on it is not handed out."""
    ids = []
    for row in connection.execute(DUE, {"now": now, "limit": LIMIT}).all():
        connection.execute(MARK, {"id": row.id})
        append_event(connection, row.id, "expired", {}, now)
        ids.append(str(row.id))
    return ids


def discard(connection: Connection, job_id: str, now: float) -> bool:
    """Let one result expire before its time; False where the job has not ended or its result is gone
    already.
    """
    if not connection.execute(DISCARD, {"id": job_id, "now": now}).rowcount:
        return False
    append_event(connection, job_id, "expired", {}, now)
    return True


def remove_expired(connection: Connection, now: float, remove: Callable[[str], None]) -> list[str]:
    """Delete what was marked a while ago. The transaction holds off anyone who would queue the job again
    meanwhile.
    """
    ids = [
        str(row.id)
        for row in connection.execute(MARKED, {"before": now - GRACE_SECONDS, "limit": LIMIT}).all()
    ]
    for job_id in ids:
        remove(job_id)
        connection.execute(FORGET_IMAGE, {"id": job_id})
        connection.execute(SETTLE, {"id": job_id})
    return ids
