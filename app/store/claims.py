"""Claims: which queued job a worker gets, and its lease.

The first job of the queue that fits is claimed. To find it, a claim looks at the head of the queue. If
nothing there fits, an index by model and need tells how many jobs of the whole queue do: none, a few, whose
first ones are claimed from, or so many that a walk along the queue meets one soon. A poll for which nothing
fits costs the same in any queue.

SQLite selects and takes the job under its write lock. PostgreSQL does both in one statement: it walks along
the queue and takes the first job that no other worker is about to take.

A claim is on the disk before the worker hears of it. Were it forgotten in a crash of the server, the job's
next claim would get the same token, and both workers could finish the job.

Longer than 300 lines: the two databases' queries of a claim stand beside each other.
"""

import json
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from sqlalchemy import Connection, RowMapping, TextClause, bindparam, text

from app.attempts import HELD_SECONDS
from app.jobs import Claim, host_of
from app.store.roles.parts import CONDITIONS, CONDITIONS_AT_ONCE, WHOLE_QUEUE, Part, Share
from app.store.rows import JOB_COLUMNS, append_event, fetch_job, job_of
from app.store.transaction import NOW, Statement, Transaction

T = TypeVar("T")
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
IS_PAUSED = text(f"select 1 from workers w join paused_workers p on {PAUSES} where w.id = :id")
PASS_OVER = text("update jobs set skips = skips + 1 where id = :id")
TAKE = text("""
    update jobs set status = 'running', stage = 'loading', token = token + 1, attempts = attempts + 1,
        worker_id = :worker_id, lease_until = :lease_until, started_at = coalesce(started_at, :now)
    where id = :id and status = 'queued'
""")


def prepared(sql: str, share: Share, *, some_models: bool) -> TextClause:
    """Return a query of one share of the queue, whose lists of models SQLAlchemy expands."""
    complete = sql.replace("{part}", CONDITIONS[share]).replace("{models}", _OF_MODELS if some_models else "")
    lists = [name for name in ("models", "left_models") if f":{name}" in complete]
    return text(complete).bindparams(*(bindparam(name, expanding=True) for name in lists))


_ByPart = dict[tuple[bool, Share], TextClause]


def _by_part(sql: str) -> _ByPart:
    return {
        (some, share): prepared(sql, share, some_models=some) for some in (False, True) for share in Share
    }


# The jobs of each model that fit. Their order lets SQLite find them by the index by model and need.
_OF_ONE = f"select id, rank from jobs where status = 'queued' and model = m.model and {_FITS}{{part}}"
_FITTING = f"select sum((select count(*) from ({_OF_ONE}{{order}} limit {FEW + 1}) fitting)) as fitting from"
_COUNT_FITTING = {
    share: prepared(
        _FITTING.replace("{order}", " order by coalesce(needed_bytes, 0)")
        + " (select value as model from json_each(:named)) m",
        share,
        some_models=False,
    )
    for share in Share
}
_COUNT_FITTING_AT_ONCE = {
    share: Statement.of(
        _FITTING.replace("{order}", "").replace("{part}", condition)
        + " unnest(cast(:models as text[])) m (model)"
    )
    for share, condition in CONDITIONS_AT_ONCE.items()
}
# Where a job is looked for: the queue's head; jobs that the index by model and need finds; the whole queue.
# SQLite:
_COLUMNS = "id, model, priority, skips, queued_at"
_HEAD_COLUMNS = "id, model, needed_bytes, rank, latents_path, kept_from_decoders"
_BEST = f"""
    select {_COLUMNS} from jobs
    where id in ({{place}}) and status = 'queued' and {_ALONE.format(now=":now")} {_FIRST} 1
"""
_AT_HEAD = f"""
    select id from (
        select {_HEAD_COLUMNS} from jobs where status = 'queued' {_FIRST} {HEAD}
    ) head where {_FITS}{{models}}{{part}} {_FIRST} {CANDIDATES}
"""
_ANYWHERE = f"select id from jobs where status = 'queued' and {_FITS}{{models}}{{part}} {_FIRST} {CANDIDATES}"
_DECODES = _ANYWHERE.replace("from jobs", "from jobs indexed by jobs_to_decode")
_FIRST_OF = {
    name: _by_part(_BEST.replace("{place}", place))
    for name, place in (("head", _AT_HEAD), ("few", _ANYWHERE), ("anywhere", _ANYWHERE))
}
_FIRST_OF["decodes"] = _by_part(_BEST.replace("{place}", _DECODES))
_OF_LOADED = _by_part(f"""
    select {_COLUMNS} from jobs
    where status = 'queued' and stage <> 'held'
        and {_FITS}{{models}}{{part}} and model = :loaded and priority >= :priority
    {_FIRST} 1
""")
# PostgreSQL plans a prepared statement for parameters that it does not know; these read few rows whatever it
# assumes.
_WANTED = f"{_FITS}{{part}} and model = any(coalesce(cast(:models as text[]), array[model]))"
_PLACES = {
    "head": f"""
        select id, rank from (
            select {_HEAD_COLUMNS} from jobs where status = 'queued' {_FIRST} {HEAD}
        ) head where {_WANTED}
    """,
    "few": f"""
        select id, rank from unnest(cast(:models as text[])) m (model)
            cross join lateral ({_OF_ONE} limit {FEW}) few
    """,
    "anywhere": f"select id, rank from jobs where status = 'queued' and {_WANTED}",
}
_PLACES["decodes"] = _PLACES["anywhere"]
# `best` is the first job that fits; `preferred` is the first of the loaded model, if that may skip `best`.
_CLAIM = f"""
    with chosen as (
        select best.id as best, preferred.id as preferred from (
            select one.* from ({{place}} {_FIRST} {CANDIDATES}) place cross join lateral (
                select id, model, priority, skips from jobs
                where id = place.id and status = 'queued'{{part}} and {_ALONE.format(now=NOW)}
                for update skip locked
            ) one where not exists (
                select 1 from workers w join paused_workers p on {PAUSES} where w.id = :worker_id
            ) order by place.rank, place.id limit 1
        ) best left join lateral (
            select id from jobs
            where status = 'queued' and stage <> 'held' and {_WANTED}
                and model = :loaded and priority >= best.priority
                and best.model <> :loaded and best.skips < :max_skips
            {_FIRST} 1 for update skip locked
        ) preferred on true
    ), passed_over as (
        update jobs set skips = skips + 1 from chosen where id = best and preferred is not null
    ), taken as (
        update jobs j set status = 'running', stage = 'loading', token = token + 1, attempts = attempts + 1,
            worker_id = :worker_id, lease_until = {NOW} + :lease_seconds,
            started_at = coalesce(started_at, {NOW})
        from chosen where id = coalesce(preferred, best) and status = 'queued'
        returning j.*
    ), told as (
        insert into new_events (job_id, kind, at, data)
        select id, 'claimed', {NOW}, cast(json_build_object(
            'worker_id', worker_id, 'host', cast(:host as text), 'attempt', attempts,
            'queued_seconds', greatest(0, {NOW} - queued_at), 'model', model
        ) as text) from taken
    )
    select {JOB_COLUMNS}, null as queue_position from taken j
"""
_CLAIM_AT_ONCE = {
    (name, share): Statement.of(_CLAIM.replace("{place}", place).replace("{part}", condition))
    for name, place in _PLACES.items()
    for share, condition in CONDITIONS_AT_ONCE.items()
}


def any_for(
    connection: Connection,
    worker_id: str,
    now: float,
    *,
    models: Sequence[str] | None = None,
    capacity_bytes: int | None = None,
    part: Part = WHOLE_QUEUE,
    **_preferences: object,
) -> bool:
    """Return whether a job is queued that this worker could run."""
    return _first_fitting(connection, worker_id, now, models, capacity_bytes, part) is not None


def _first_fitting(
    connection: Connection,
    worker_id: str,
    now: float,
    models: Sequence[str] | None,
    capacity_bytes: int | None,
    part: Part,
) -> RowMapping | None:
    wanted = {**_filters(models, capacity_bytes, part), "same_service": _same_service(worker_id), "now": now}

    def first_of(place: str) -> RowMapping | None:
        found = connection.execute(_FIRST_OF[place][models is not None, part.share], wanted)
        return found.mappings().one_or_none()

    def count(models: Sequence[str]) -> int:
        row = {**part.parameters, "capacity": wanted["capacity"], "named": json.dumps(models)}
        return int(connection.execute(_COUNT_FITTING[part.share], row).scalar_one())

    return _found(models, first_of, count, part)


def _found(
    models: Sequence[str] | None,
    first_of: Callable[[str], T | None],
    count: Callable[[Sequence[str]], int],
    part: Part,
) -> T | None:
    """Return the first job, from the first place that has one. `count` tells how many jobs fit."""
    if models is not None and not models:
        return None
    if part.share is Share.DENOISED:  # which have an index
        return first_of("decodes")
    found = first_of("head")
    if found is not None:
        return found
    if models is None:
        return first_of("anywhere")
    fitting = count(models)
    if not fitting:
        return None
    return first_of("anywhere" if fitting > FEW else "few")


def _same_service(worker_id: str) -> str:
    """Return the pattern of ids of the workers that share this worker's service."""
    _, slash, instance = worker_id.rpartition("/")
    return f"%{slash}{instance}"


def _filters(models: Sequence[str] | None, capacity_bytes: int | None, part: Part) -> dict[str, Any]:
    named = {**part.parameters, **({} if models is None else {"models": list(models)})}
    return {"capacity": UNLIMITED if capacity_bytes is None else capacity_bytes, **named}


def claim(
    tx: Transaction,
    worker_id: str,
    *,
    models: Sequence[str] | None = None,
    loaded_model: str | None = None,
    capacity_bytes: int | None = None,
    lease_seconds: float = 30.0,
    part: Part = WHOLE_QUEUE,
) -> Claim | None:
    """Lease the best queued job to this worker; return None if there is none or its device is paused.

    Only jobs of `part` that need at most `capacity_bytes` are considered. The job with the lowest rank is
    claimed, with one exception: a job that uses the loaded model and has no lower priority goes first, until
    the job it skips has been skipped `max_skips` times.
    """
    if tx.is_postgresql:
        return _claim_at_once(tx, worker_id, models, loaded_model, capacity_bytes, lease_seconds, part)
    if tx.execute(IS_PAUSED, {"id": worker_id}).one_or_none() is not None:
        return None
    chosen = _first_fitting(tx.connection, worker_id, tx.now, models, capacity_bytes, part)
    if chosen is None:
        return None
    if loaded_model is not None and chosen["model"] != loaded_model and chosen["skips"] < tx.rules.max_skips:
        preference = {"loaded": loaded_model, "priority": chosen["priority"]}
        wanted = {**_filters(models, capacity_bytes, part), **preference}
        preferred = tx.execute(_OF_LOADED[models is not None, part.share], wanted).mappings().one_or_none()
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
    part: Part,
) -> Claim | None:
    row = {
        **part.parameters,
        "models": None if models is None else list(models),
        "capacity": UNLIMITED if capacity_bytes is None else capacity_bytes,
        "worker_id": worker_id,
        "same_service": _same_service(worker_id),
        "host": host_of(worker_id),
        "loaded": loaded_model,
        "lease_seconds": lease_seconds,
        "max_skips": tx.rules.max_skips,
        "now": tx.given_now,
    }

    def count(_: Sequence[str]) -> int:
        counted = tx.first(_COUNT_FITTING_AT_ONCE[part.share], row)
        return int(counted["fitting"]) if counted is not None else 0

    found = _found(models, lambda place: tx.first(_CLAIM_AT_ONCE[place, part.share], row), count, part)
    if found is None:
        return None
    job = job_of(found)
    return Claim(job, job.token)


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
