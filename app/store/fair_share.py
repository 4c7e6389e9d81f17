"""Fair share of the queue between API keys: start-time fair queueing by expected seconds.

https://doi.org/10.1109/90.649569 (Goyal, Vin, Cheng: Start-time Fair Queueing). Each key has a line of its
own. A job's virtual start is the end of the job before it in its key's line, or the present virtual time if
that is later; its end is `expected_seconds` after its start. Jobs run in the order of their starts. A key
that queues fifty jobs thus fills the time after its first one, and another key's first job starts beside it.

The start takes the place of the time of arrival in a job's rank, so claims and priorities know nothing of
keys. It is computed once, when the job is queued, from the jobs that are in the table then. Nothing else is
stored: who cancels jobs gives their time back.

The virtual time is the latest start among running jobs. If none runs, it is the start of the first queued
job, and with no job at all the time of the clock. Each priority has a line; a job waits for its key's jobs of
the same or a higher one.
"""

from collections.abc import Mapping
from typing import Any

from sqlalchemy import TextClause, text

from app.store.transaction import Transaction

MIN_SECONDS, MAX_SECONDS = 1.0, 3600.0
# The lines of two keys that begin at one virtual time keep the order of arrival.
AGE = 1e-3
# A job's start is its rank without the head start that its priority gives.
_START = "rank + priority * :priority_seconds"
# A job that goes behind others after setbacks has a rank of another kind; its own is in `setbacks`.
_IN_LINE = """stage <> 'held' and (setbacks is null or setbacks not like '%"rank"%')"""
RUNNING = text(f"select max({_START}) from jobs where status = 'running' and {_IN_LINE}")
FIRST_QUEUED = text(
    f"select {_START} from jobs where status = 'queued' and {_IN_LINE} order by rank, id limit 1"
)
_END = f"{_START} + coalesce(expected_seconds, 0)"
END_OF_RUNNING = text(
    f"select max({_END}) from jobs where status = 'running' and owner = :owner and {_IN_LINE}"
)
# The priorities in the key's line, from this one up: each step is one look into an index.
END_OF_QUEUED = text(f"""
    with recursive lines (priority) as (
        select min(priority) from jobs
        where status = 'queued' and owner = :owner and priority >= :priority
        union all
        select (
            select min(priority) from jobs
            where status = 'queued' and owner = :owner and priority > lines.priority
        )
        from lines where lines.priority is not null
    )
    select max((
        select {_END} from jobs
        where status = 'queued' and owner = :owner and jobs.priority = lines.priority and {_IN_LINE}
        order by rank desc limit 1
    )) from lines where lines.priority is not null
""")


def rank_of(
    tx: Transaction, owner: str | None, priority: int, arrived_at: float, expected_seconds: float | None
) -> float:
    """Return a job's sort key: its start, less `priority_seconds` for each step of priority.

    The start is the time of arrival or, with `expected_seconds`, the virtual start in the line of its key.
    """
    start = arrived_at if expected_seconds is None else start_of(tx, owner, priority, arrived_at)
    return start - priority * tx.rules.priority_seconds


def start_of(tx: Transaction, owner: str | None, priority: int, arrived_at: float) -> float:
    """Return the virtual start of a job that is queued now, in seconds since the epoch."""
    step = {"priority_seconds": tx.rules.priority_seconds}
    own = {**step, "owner": owner, "priority": priority}
    present = _value(tx, RUNNING, step) or _value(tx, FIRST_QUEUED, step) or arrived_at
    ends = (_value(tx, END_OF_RUNNING, own), _value(tx, END_OF_QUEUED, own))
    start = max([present, *(end for end in ends if end is not None)])
    return start + AGE * max(0.0, arrived_at - start)


def _value(tx: Transaction, query: TextClause, parameters: Mapping[str, Any]) -> float | None:
    found = tx.execute(query, parameters).scalar()
    return None if found is None else float(found)


def bounded(expected_seconds: float | None) -> float | None:
    """Return expected seconds as they are stored: no job is free, and none takes the queue for hours."""
    return None if expected_seconds is None else min(MAX_SECONDS, max(MIN_SECONDS, expected_seconds))
