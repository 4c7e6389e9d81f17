"""Claims: which queued job a worker gets, and its lease.

The first job of the queue that fits is claimed. To find it, a claim walks the head of the queue. If nothing
there fits, an index by model and need tells how many jobs of the whole queue do: none, a few, which are
sorted, or so many that the walk meets one soon. A poll for which nothing fits costs the same in any queue.

SQLite selects and takes the job under its write lock. PostgreSQL does both in one statement and leaves out
jobs that another worker is about to take.
"""

from collections.abc import Sequence
from typing import Any

from sqlalchemy import Connection, RowMapping, TextClause, bindparam, text

from app.jobs import Claim, host_of
from app.store.rows import JOB_COLUMNS, append_event, fetch_job, job_of
from app.store.transaction import Transaction

HEAD = 200
FEW = 10_000
UNLIMITED = 2**63 - 1

# A pause names a worker, or all workers whose ids begin like that, or a device (from before version 0004).
PAUSES = """
    (p.worker_id in (w.id, w.device_name) or substr(w.id, 1, length(p.worker_id) + 1) = p.worker_id || '/')
"""
_FITS = "status = 'queued' and coalesce(needed_bytes, 0) <= :capacity"
_OF_MODELS = " and model in :models"
# Where a job is looked for: among the first of the queue, among the few that fit at all, or everywhere.
_AMONG_FIRST = f"""
    and rank <= coalesce(
        (select rank from jobs where status = 'queued' order by rank, id limit 1 offset {HEAD}), 1e308
    )
"""
_AMONG_FEW = f" and id in (select id from jobs where {_FITS}{{models}} limit {FEW})"
_EVERYWHERE = ""
_PLACES = (_AMONG_FIRST, _AMONG_FEW, _EVERYWHERE)
_FIRST = "order by rank, id limit 1"

IS_PAUSED = text(f"select 1 from workers w join paused_workers p on {PAUSES} where w.id = :id")
PASS_OVER = text("update jobs set skips = skips + 1 where id = :id")
TAKE = text("""
    update jobs set status = 'running', stage = 'loading', token = token + 1, attempts = attempts + 1,
        worker_id = :worker_id, lease_until = :lease_until, started_at = coalesce(started_at, :now)
    where id = :id and status = 'queued'
""")


def _prepared(sql: str, *, some_models: bool) -> TextClause:
    query = text(sql.replace("{models}", _OF_MODELS if some_models else ""))
    return query.bindparams(bindparam("models", expanding=True)) if some_models else query


def _by_models(sql: str) -> dict[bool, TextClause]:
    return {some: _prepared(sql, some_models=some) for some in (False, True)}


_COLUMNS = "id, model, priority, skips, queued_at"
_FITTING = _by_models(f"select count(*) from (select 1 from jobs where {_FITS}{{models}} limit {FEW + 1}) f")
_CANDIDATE = {
    p: _by_models(f"select {_COLUMNS} from jobs where {_FITS}{{models}}{p} {_FIRST}") for p in _PLACES
}
_LOADED = " and model = :loaded and priority >= :priority"
_OF_LOADED = _by_models(f"select {_COLUMNS} from jobs where {_FITS}{{models}}{_LOADED} {_FIRST}")
# `best` is the first job that fits; `preferred` is the first of the loaded model, if that may skip `best`.
_CLAIM = {
    place: _by_models(f"""
    with moment as (
        select coalesce(cast(:now as double precision), extract(epoch from clock_timestamp())) as now
    ), best as (
        select {_COLUMNS} from jobs where {_FITS}{{models}}{place} and not exists (
            select 1 from workers w join paused_workers p on {PAUSES} where w.id = :worker_id
        ) {_FIRST} for update skip locked
    ), preferred as (
        select {_COLUMNS} from jobs where {_FITS}{{models}} and model = :loaded
            and priority >= (select priority from best)
            and exists (select 1 from best where model <> :loaded and skips < :max_skips)
        {_FIRST} for update skip locked
    ), passed_over as (
        update jobs set skips = skips + 1
        where id in (select id from best) and exists (select 1 from preferred)
    ), chosen as (
        select id from preferred union all select id from best where not exists (select 1 from preferred)
    ), taken as (
        update jobs j set status = 'running', stage = 'loading', token = j.token + 1,
            attempts = j.attempts + 1, worker_id = :worker_id, lease_until = m.now + :lease_seconds,
            started_at = coalesce(j.started_at, m.now)
        from chosen c, moment m where j.id = c.id and j.status = 'queued'
        returning j.*
    ), told as (
        insert into new_events (job_id, kind, at, data)
        select t.id, 'claimed', m.now, cast(json_build_object(
            'worker_id', t.worker_id, 'host', cast(:host as text), 'attempt', t.attempts,
            'queued_seconds', greatest(0, m.now - t.queued_at), 'model', t.model
        ) as text) from taken t, moment m
    )
    select {JOB_COLUMNS}, null as queue_position from taken j
    """)
    for place in _PLACES
}


def any_for(
    connection: Connection,
    *,
    models: Sequence[str] | None = None,
    capacity_bytes: int | None = None,
    **_preferences: object,
) -> bool:
    """Return whether a job is queued that this worker could run."""
    return _first_fitting(connection, models, capacity_bytes) is not None


def _first_fitting(
    connection: Connection, models: Sequence[str] | None, capacity_bytes: int | None
) -> RowMapping | None:
    if models is not None and not models:
        return None
    wanted = _filters(models, capacity_bytes)
    for place in _places(connection, models, wanted):
        query = _CANDIDATE[place][models is not None]
        found = connection.execute(query, wanted).mappings().one_or_none()
        if found is not None:
            return found
    return None


def _places(connection: Connection, models: Sequence[str] | None, wanted: dict[str, Any]) -> Any:
    """Yield where to look for a job, until it is found."""
    yield _AMONG_FIRST
    fitting = connection.execute(_FITTING[models is not None], wanted).scalar_one()
    if fitting:
        yield _AMONG_FEW if fitting <= FEW else _EVERYWHERE


def _filters(models: Sequence[str] | None, capacity_bytes: int | None) -> dict[str, Any]:
    named = {} if models is None else {"models": list(models)}
    return {"capacity": UNLIMITED if capacity_bytes is None else capacity_bytes, **named}


def claim(
    tx: Transaction,
    worker_id: str,
    *,
    models: Sequence[str] | None = None,
    loaded_model: str | None = None,
    capacity_bytes: int | None = None,
    lease_seconds: float = 30.0,
) -> Claim | None:
    """Lease the best queued job to this worker; return None if there is none or its device is paused.

    Only jobs that need at most `capacity_bytes` are considered. The job with the lowest rank is claimed, with
    one exception: a job that uses the loaded model and has no lower priority goes first, until the job it
    skips has been skipped `max_skips` times.
    """
    if tx.is_postgresql:
        return _claim_at_once(tx, worker_id, models, loaded_model, capacity_bytes, lease_seconds)
    if tx.execute(IS_PAUSED, {"id": worker_id}).one_or_none() is not None:
        return None
    chosen = _first_fitting(tx.connection, models, capacity_bytes)
    if chosen is None:
        return None
    if loaded_model is not None and chosen["model"] != loaded_model and chosen["skips"] < tx.rules.max_skips:
        wanted = {**_filters(models, capacity_bytes), "loaded": loaded_model, "priority": chosen["priority"]}
        preferred = tx.execute(_OF_LOADED[models is not None], wanted).mappings().one_or_none()
        if preferred is not None:
            tx.execute(PASS_OVER, {"id": chosen["id"]})
            chosen = preferred
    return take(tx, chosen, worker_id, lease_seconds)


def _claim_at_once(
    tx: Transaction,
    worker_id: str,
    models: Sequence[str] | None,
    loaded_model: str | None,
    capacity_bytes: int | None,
    lease_seconds: float,
) -> Claim | None:
    if models is not None and not models:
        return None
    wanted = _filters(models, capacity_bytes)
    row = {
        **wanted,
        "worker_id": worker_id,
        "host": host_of(worker_id),
        "loaded": loaded_model,
        "lease_seconds": lease_seconds,
        "max_skips": tx.rules.max_skips,
        "now": tx.given_now,
    }
    for place in _places(tx.connection, models, wanted):
        found = tx.execute(_CLAIM[place][models is not None], row).mappings().one_or_none()
        if found is not None:
            job = job_of(found)
            return Claim(job, job.token)
    return None


def take(tx: Transaction, row: RowMapping, worker_id: str, lease_seconds: float) -> Claim:
    """Lease the queued job in `row`, selected and locked in this transaction, to a worker."""
    job_id = row["id"]
    lease_until = tx.now + lease_seconds
    tx.execute(TAKE, {"id": job_id, "worker_id": worker_id, "lease_until": lease_until, "now": tx.now})
    job = fetch_job(tx.connection, job_id)
    data = {
        "worker_id": worker_id,
        "host": host_of(worker_id),
        "attempt": job.attempts,
        "queued_seconds": max(0.0, tx.now - row["queued_at"]),
    }
    append_event(tx, job_id, "claimed", {**data, "model": row["model"]})
    return Claim(job, job.token)
