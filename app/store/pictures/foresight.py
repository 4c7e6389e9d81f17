"""What will become of a submission, as far as it can be told without a lock.

A request that gets no job, because it is a repetition or the queue is full, then writes no picture. Looking
costs a tenth of a submission, so it is done where it may tell something.
"""

import time
from collections.abc import Sequence

from sqlalchemy import Connection

from app.jobs import Job
from app.store.intake import SELECT_KEY, Submission, is_free, job_of_key, scoped_key
from app.store.queue_limits import look_for_room
from app.store.rows import fetch_job
from app.store.transaction import Rules

FULL_SECONDS = 5.0


class Foresight:
    """Looks ahead for one store."""

    def __init__(self, rules: Rules) -> None:
        self._rules = rules
        self._full_until = 0.0

    def may_tell(self, submissions: Sequence[Submission]) -> bool:
        """Whether to look: a request may be repeated, or the queue was full lately."""
        return time.monotonic() < self._full_until or any(each.idempotency_key for each in submissions)

    def note_full(self) -> None:
        """Look for room before submissions that come soon."""
        self._full_until = time.monotonic() + FULL_SECONDS

    def of(self, connection: Connection, submissions: Sequence[Submission]) -> list[tuple[Job, bool]] | None:
        """As `foresee`."""
        return foresee(connection, self._rules, submissions)


def foresee(
    connection: Connection, rules: Rules, submissions: Sequence[Submission]
) -> list[tuple[Job, bool]] | None:
    """Return what `intake.submit_all` would if none of the jobs were new; None if some are.

    Raises its refusals that can be foreseen: `QueueFull` and `IdempotencyConflict`.
    """
    rows = [job_of_key(connection, each) for each in submissions]
    known = [row.id for row in rows if row is not None and not is_free(row)]
    if len(known) == len(submissions):
        return [(fetch_job(connection, job_id), False) for job_id in known]
    first, new = submissions[0], len(submissions) - len(known)
    look_for_room(connection, rules, new, first.owner, first.max_queued_of_owner)
    return None


def repeated_job(connection: Connection, owner: str | None, idempotency_key: str) -> Job | None:
    """Return the job that a request under this key repeats if it asks for the same; None if it is new."""
    key = {"key": scoped_key(owner, idempotency_key)}
    row = connection.execute(SELECT_KEY, key).one_or_none()
    return None if row is None or is_free(row) else fetch_job(connection, row.id)
