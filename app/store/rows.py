"""Conversion between database rows and jobs or events: columns, JSON, and the append to the event history."""

import json
import secrets
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, text
from sqlalchemy.sql.elements import TextClause

from app.jobs import Event, Job, JobSpec, JobStatus, Json, Stage
from app.store.errors import NoSuchJob
from app.store.transaction import Locking, Transaction

JOB_COLUMNS = """
    j.id, j.status, j.stage, j.progress, j.spec, j.plan, j.needed_bytes, j.created_at, j.started_at,
    j.finished_at, j.expires_at, j.expired, j.attempts, j.token, j.worker_id, j.lease_until,
    j.cancel_requested, j.latents_path, j.denoise, j.decode, j.result, j.error, j.owner,
    j.deleted_at, j.erased_at, j.remixed_from, j.setbacks, j.webhook, j.preempted, j.download, j.handover,
    j.kept_from_decoders,
    exists (select 1 from job_pictures p where p.job_id = j.id and p.field = 'last_image') as has_last_image
"""
# The greatest position that is reported; every later job reports this number, too. Counting a queue of a
# million jobs would take longer than any other query.
MAX_POSITION = 10_000
# A queued job's position is one more than the number of queued jobs before it.
_POSITION = f"""
    case when j.status = 'queued' then (
        select count(*) + 1 from (
            select 1 from jobs q where q.status = 'queued' and q.rank < j.rank limit {MAX_POSITION - 1}
        ) before
    ) end as queue_position
"""

SELECT_JOB = text(f"select {JOB_COLUMNS}, {_POSITION} from jobs j where j.id = :id")
_EVENTS = "select seq, job_id, kind, at, data from events where seq > :after"
SELECT_EVENTS = text(f"{_EVENTS} order by seq limit :limit")
SELECT_JOB_EVENTS = text(f"{_EVENTS} and job_id = :job_id order by seq limit :limit")
_LOCK_JOB = Locking.of("select 1 from jobs where id = :id")
_INSERT_EVENT = "insert into {table} (job_id, kind, at, data) values (:job_id, :kind, :at, :data)"
INSERT_EVENT = text(_INSERT_EVENT.format(table="events"))
INSERT_NEW_EVENT = text(_INSERT_EVENT.format(table="new_events"))


@dataclass(frozen=True, slots=True)
class StoredPicture:
    """A picture of a job: its key, the field of the request that it came in, and its size."""

    key: str
    field: str
    bytes: int


class _Ids:
    """Ids in strictly increasing order, so that jobs accepted within one millisecond keep their order."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._last = 0

    def next(self, now: float) -> int:
        """Milliseconds since 1970 in the upper bits, 80 random bits below; larger than every id before."""
        fresh = int(1000 * now) << 80 | secrets.randbits(80)
        with self._lock:
            # The random step keeps the next id as hard to guess as a fresh one.
            self._last = fresh if fresh > self._last else self._last + 1 + secrets.randbits(64)
            return self._last


_ids = _Ids()


def new_id(now: float) -> str:
    """Return a new id of 32 hexadecimal digits; ids sort by time of creation (`now`, in seconds)."""
    return f"{_ids.next(now):032x}"


def first_id_of(seconds: float) -> str:
    """Return the lowest id that a job created at or after that time (seconds since the epoch) can have."""
    return f"{max(0, int(1000 * seconds)) << 80:032x}"


def dump(value: Mapping[str, Any] | None) -> str | None:
    """Return the text of a JSON column."""
    return None if value is None else json.dumps(value, separators=(",", ":"), allow_nan=False)


def load(value: str | None) -> Json | None:
    """Return the value of a JSON column."""
    return None if value is None else json.loads(value)


def job_of(row: Mapping[Any, Any]) -> Job:
    """Return the job in a row selected with `JOB_COLUMNS` and `queue_position`."""
    columns = dict(row)
    documents = (
        "plan",
        "denoise",
        "decode",
        "result",
        "error",
        "setbacks",
        "webhook",
        "preempted",
        "download",
        "handover",
    )
    for name in documents:
        columns[name] = load(columns[name])
    columns["status"] = JobStatus(columns["status"])
    columns["stage"] = Stage(columns["stage"])
    columns["spec"] = JobSpec.model_validate_json(columns["spec"])
    for name in (
        "expired",
        "cancel_requested",
        "has_last_image",
        "kept_from_decoders",
    ):  # SQLite has no booleans
        columns[name] = bool(columns[name])
    return Job(**columns)


def fetch_job(connection: Connection, job_id: str) -> Job:
    """Return the job with that id. Raises `NoSuchJob`."""
    if not (job_id.isascii() and job_id.isalnum()):  # PostgreSQL rejects NUL, even in a query
        raise NoSuchJob(job_id)
    row = connection.execute(SELECT_JOB, {"id": job_id}).mappings().one_or_none()
    if row is None:
        raise NoSuchJob(job_id)
    return job_of(row)


def fetch_events(
    connection: Connection, seq: int, limit: int = 1000, job_id: str | None = None
) -> list[Event]:
    """Return events numbered above `seq`, oldest first, of one job or of all."""
    query: TextClause = SELECT_EVENTS if job_id is None else SELECT_JOB_EVENTS
    parameters = {"after": seq, "limit": limit, **({} if job_id is None else {"job_id": job_id})}
    return [
        Event(row.seq, row.job_id, row.kind, row.at, json.loads(row.data))
        for row in connection.execute(query, parameters)
    ]


def lock_job(tx: Transaction, job_id: str) -> Job:
    """Return the job, which no other transaction can change until this one ends. Raises `NoSuchJob`."""
    if tx.is_postgresql and job_id.isascii() and job_id.isalnum():
        tx.execute(_LOCK_JOB, {"id": job_id})
    return fetch_job(tx.connection, job_id)


def append_event(tx: Transaction, job_id: str, kind: str, data: Mapping[str, Any]) -> None:
    """Append an event to the history. The transaction has changed or locked the job's row before."""
    statement = INSERT_NEW_EVENT if tx.is_postgresql else INSERT_EVENT
    tx.execute(statement, {"job_id": job_id, "kind": kind, "at": tx.now, "data": dump(data)})
