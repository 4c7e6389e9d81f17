"""Claims: which queued job a worker gets, and its lease.

The first job of the queue that fits is claimed. To find it, a claim looks at the head of the queue. If
nothing there fits, an index by model and need tells how many jobs of the whole queue do: none, a few, whose
first ones are claimed from, or so many that a walk along the queue meets one soon. A poll for which nothing
fits costs the same in any queue.

SQLite selects and takes the job under its write lock. PostgreSQL does both in one statement and leaves out
jobs that another worker is about to take.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from sqlalchemy import Connection, RowMapping, TextClause, bindparam, text

from app.attempts import HELD_SECONDS
from app.jobs import Claim, host_of
from app.store.rows import JOB_COLUMNS, append_event, fetch_job, job_of
from app.store.transaction import Transaction

HEAD = 200
FEW = 10_000
CANDIDATES = 100  # more than the workers that claim at the same moment
UNLIMITED = 2**63 - 1

# A pause names a worker, or all workers whose ids begin like that, or a device (from before version 0004).
PAUSES = """
    (p.worker_id in (w.id, w.device_name) or substr(w.id, 1, length(p.worker_id) + 1) = p.worker_id || '/')
"""
# A job that used up its attempts is tried alone: while no other job runs in the worker's service. Where jobs
# never stop coming, it is tried beside others in the end.
_ALONE = f"""
    (stage <> 'held' or queued_at < {{now}} - {HELD_SECONDS} or not exists (
        select 1 from jobs r where r.status = 'running' and r.worker_id like :same_service
    ))
"""
_FITS = "coalesce(needed_bytes, 0) <= :capacity"
_OF_MODELS = " and model in :models"
_FIRST = "order by rank, id limit"
# Where a job is looked for: queries of ids. PostgreSQL plans a prepared statement for parameters that it does
# not know; each query reads few rows whatever it assumes.
_HEAD = f"""
    select id from (
        select id, model, needed_bytes, rank from jobs where status = 'queued' {_FIRST} {HEAD}
    ) head where {_FITS}{{models}} {_FIRST} {CANDIDATES}
"""
_THESE = {"sqlite": "select value from json_each(:ids)", "postgresql": "select unnest(cast(:ids as text[]))"}
_ANYWHERE = f"select id from jobs where status = 'queued' and {_FITS}{{models}} {_FIRST} {CANDIDATES}"
IS_PAUSED = text(f"select 1 from workers w join paused_workers p on {PAUSES} where w.id = :id")
PASS_OVER = text("update jobs set skips = skips + 1 where id = :id")
TAKE = text("""
    update jobs set status = 'running', stage = 'loading', token = token + 1, attempts = attempts + 1,
        worker_id = :worker_id, lease_until = :lease_until, started_at = coalesce(started_at, :now)
    where id = :id and status = 'queued'
""")


def _prepared(sql: str, *, some_models: bool) -> TextClause:
    query = text(complete := sql.replace("{models}", _OF_MODELS if some_models else ""))
    return query.bindparams(bindparam("models", expanding=True)) if ":models" in complete else query


def _by_models(sql: str) -> dict[bool, TextClause]:
    return {some: _prepared(sql, some_models=some) for some in (False, True)}


# The jobs of each model that fit, from the least need on, so that the index by model and need finds them.
_OF_ONE = f"""
    select id, rank from jobs where status = 'queued' and model = m.model and {_FITS}
    order by coalesce(needed_bytes, 0) limit
"""
_MODELS = {
    "sqlite": "(select value as model from json_each(:models)) m",
    "postgresql": "unnest(cast(:models as text[])) m (model)",
}
_COUNT_FITTING = {
    dialect: text(f"select sum((select count(*) from ({_OF_ONE} {FEW + 1}) fitting)) from {models}")
    for dialect, models in _MODELS.items()
}
_FEW = {
    "sqlite": _prepared(
        f"select id from jobs where status = 'queued' and {_FITS}{_OF_MODELS} {_FIRST} {CANDIDATES}",
        some_models=True,
    ),
    "postgresql": text(f"""
        select id from {_MODELS["postgresql"]} cross join lateral ({_OF_ONE} {FEW}) few {_FIRST} {CANDIDATES}
    """),
}
_COLUMNS = "id, model, priority, skips, queued_at"
_BEST = f"""
    select {_COLUMNS} from jobs
    where id in ({{place}}) and status = 'queued' and {_ALONE.format(now=":now")} {_FIRST} 1
"""
_LOADED = f"""
    select {_COLUMNS} from jobs
    where status = 'queued' and stage <> 'held'
        and {_FITS}{{models}} and model = :loaded and priority >= {{least}}
"""
_OF_LOADED = _by_models(f"{_LOADED.format(models='{models}', least=':priority')} {_FIRST} 1")
# `best` is the first job that fits; `preferred` is the first of the loaded model, if that may skip `best`.
_CLAIM = f"""
    with moment as (
        select coalesce(cast(:now as double precision), extract(epoch from clock_timestamp())) as now
    ), candidates (id) as materialized ({{place}}), best as (
        select {_COLUMNS} from jobs where id in (select id from candidates) and status = 'queued'
            and {_ALONE.format(now="(select now from moment)")} and not exists (
                select 1 from workers w join paused_workers p on {PAUSES} where w.id = :worker_id
            )
        {_FIRST} 1 for update skip locked
    ), preferred as (
        {_LOADED.format(models="{models}", least="(select priority from best)")}
            and exists (select 1 from best where model <> :loaded and skips < :max_skips)
        {_FIRST} 1 for update skip locked
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
"""


@dataclass(frozen=True, slots=True)
class Place:
    """Where a job is looked for. `ids` are the jobs of a place that is a list, for the query's parameter."""

    best: Mapping[bool, TextClause]
    claim: Mapping[bool, TextClause]
    ids: tuple[str, ...] | None = None


def _place(ids: str) -> Place:
    return Place(_by_models(_BEST.replace("{place}", ids)), _by_models(_CLAIM.replace("{place}", ids)))


HEAD_OF_QUEUE, ANYWHERE = _place(_HEAD), _place(_ANYWHERE)
AMONG = {dialect: _place(ids) for dialect, ids in _THESE.items()}


def any_for(
    connection: Connection,
    worker_id: str,
    now: float,
    *,
    models: Sequence[str] | None = None,
    capacity_bytes: int | None = None,
    **_preferences: object,
) -> bool:
    """Return whether a job is queued that this worker could run."""
    return _first_fitting(connection, worker_id, now, models, capacity_bytes) is not None


def _first_fitting(
    connection: Connection,
    worker_id: str,
    now: float,
    models: Sequence[str] | None,
    capacity_bytes: int | None,
) -> RowMapping | None:
    wanted = {**_filters(models, capacity_bytes), "same_service": _same_service(worker_id), "now": now}
    for place in _places(connection, models, capacity_bytes):
        row = {**wanted, **_ids_of(connection, place)}
        found = connection.execute(place.best[models is not None], row).mappings().one_or_none()
        if found is not None:
            return found
    return None


def _places(
    connection: Connection, models: Sequence[str] | None, capacity_bytes: int | None
) -> Iterator[Place]:
    """Yield where to look for a job, until it is found."""
    if models is not None and not models:
        return
    yield HEAD_OF_QUEUE
    if models is None:
        yield ANYWHERE
        return
    dialect = connection.dialect.name
    capacity = _filters(None, capacity_bytes)
    listed = {**capacity, "models": json.dumps(models) if dialect == "sqlite" else list(models)}
    fitting = connection.execute(_COUNT_FITTING[dialect], listed).scalar_one()
    if fitting > FEW:
        yield ANYWHERE
    elif fitting:
        wanted = {**capacity, "models": list(models)}
        ids = connection.execute(_FEW[dialect], wanted).scalars().all()
        yield replace(AMONG[dialect], ids=tuple(ids))


def _ids_of(connection: Connection, place: Place) -> dict[str, Any]:
    if place.ids is None:
        return {}
    return {"ids": json.dumps(place.ids) if connection.dialect.name == "sqlite" else list(place.ids)}


def _same_service(worker_id: str) -> str:
    """Return the pattern of ids of the workers that share this worker's service."""
    _, slash, instance = worker_id.rpartition("/")
    return f"%{slash}{instance}"


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
    chosen = _first_fitting(tx.connection, worker_id, tx.now, models, capacity_bytes)
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
    row = {
        **_filters(models, capacity_bytes),
        "worker_id": worker_id,
        "same_service": _same_service(worker_id),
        "host": host_of(worker_id),
        "loaded": loaded_model,
        "lease_seconds": lease_seconds,
        "max_skips": tx.rules.max_skips,
        "now": tx.given_now,
    }
    for place in _places(tx.connection, models, capacity_bytes):
        of_place = {**row, **_ids_of(tx.connection, place)}
        found = tx.execute(place.claim[models is not None], of_place).mappings().one_or_none()
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
