"""Read-only queries of the job table."""

import json
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import Connection, bindparam, text

from app.jobs import Job, JobStatus
from app.store.rows import JOB_COLUMNS, MAX_POSITION, StoredPicture, first_id_of, job_of

PICTURES = text("select key, field, bytes from job_pictures where job_id = :id")
PICTURES_USED = text("select key from job_pictures where key in :keys").bindparams(
    bindparam("keys", expanding=True)
)
JOBS = text(f"select {JOB_COLUMNS}, j.rank from jobs j where j.id in :ids order by j.id desc").bindparams(
    bindparam("ids", expanding=True)
)
OWNERS = text("select id, owner from jobs where id in :ids and deleted_at is null").bindparams(
    bindparam("ids", expanding=True)
)
LOOKED_AT = 2000  # jobs that one search reads at most: some 60 ms
# `job_counts` counts queued and running jobs together, as `open`: a claim changes no count. Of running jobs
# there are as many as workers.
_RUNNING = "(select count(*) from jobs where status = 'running')"
COUNTS = text(f"""
    select 'running' as status, {_RUNNING} as jobs
    union all
    select 'queued', coalesce(cast(sum(jobs) as bigint), 0) - {_RUNNING} from job_counts where status = 'open'
    union all
    select status, cast(sum(jobs) as bigint) from job_counts where status <> 'open' group by status
""")
QUEUED = text(f"""
    select coalesce(cast(sum(jobs) as bigint), 0) - {_RUNNING} from job_counts where status = 'open'
""")
# Ids sort by the time of creation. Jobs queued again have old ids; so many first ones are looked at.
OLDEST_QUEUED = text("""
    select min(queued_at) from (
        select queued_at from jobs where status = 'queued' order by id limit 1000
    ) oldest
""")
LAST_EVENT = text("select coalesce(max(seq), 0) from events")
COUNT_BEFORE = text(f"""
    select count(*) from (
        select 1 from jobs where status = 'queued' and rank < :lowest limit {MAX_POSITION - 1}
    ) before
""")
RANKS = text("""
    select rank from jobs where status = 'queued' and rank >= :lowest and rank < :highest
    order by rank limit :limit
""")
# The smallest model, then again and again the next greater one: each step is one look into an index.
QUEUED_MODELS = text("""
    with recursive found (model) as (
        select min(model) from jobs where status = 'queued'
        union all
        select (select min(model) from jobs where status = 'queued' and model > found.model)
        from found where found.model is not null
    )
    select model from found where model is not null
""")
QUEUED_BEYOND = text("""
    select id, coalesce(needed_bytes, 0) as needed_bytes from jobs
    where status = 'queued' and model = :model and coalesce(needed_bytes, 0) > :capacity limit :limit
""")


# A job that is queued again afterwards runs in full.
FINISH_EARLY = text("""
    select coalesce(max(case when kind = 'finish_early_requested' then seq end), 0)
        > coalesce(max(case when kind = 'queued_again' then seq end), 0) as requested
    from events where job_id = :id and kind in ('finish_early_requested', 'queued_again')
""")


def is_finish_early_requested(connection: Connection, job_id: str) -> bool:
    """Whether a client wants the running job to end its denoise with the next step."""
    return bool(connection.execute(FINISH_EARLY, {"id": job_id}).scalar())


def pictures(connection: Connection, job_id: str) -> dict[str, StoredPicture]:
    """Return what is known of the job's pictures, by the field of the request that they came in."""
    rows = connection.execute(PICTURES, {"id": job_id})
    return {row.field: StoredPicture(row.key, row.field, row.bytes) for row in rows}


def pictures_used(connection: Connection, keys: Sequence[str]) -> set[str]:
    """Return those of these pictures that jobs have."""
    return set(connection.execute(PICTURES_USED, {"keys": list(keys)}).scalars())


def page(
    connection: Connection,
    *,
    status: JobStatus | None = None,
    model: str | None = None,
    owner: str | None = None,
    since: float | None = None,
    before: float | None = None,
    after: str | None = None,
    limit: int = 50,
    newest_first: bool = True,
    with_deleted: bool = True,
    ended: bool = False,
) -> list[Job]:
    """Return one page of jobs sorted by age.

    `since` and `before` select jobs created at or after, and before, these times (seconds since the epoch);
    `after` is the last id of the previous page. `ended` selects jobs that have ended in whichever way.
    """
    where, row = _conditions(
        status=status,
        model=model,
        owner=owner,
        since=since,
        before=before,
        after=after,
        newest_first=newest_first,
        with_deleted=with_deleted,
        ended=ended,
    )
    order = "desc" if newest_first else "asc"
    jobs = f"jobs j{_along(connection, status)}"
    query = text(f"select {JOB_COLUMNS}, j.rank from {jobs}{where} order by j.id {order} limit :limit")
    return _jobs(
        connection, [dict(one) for one in connection.execute(query, {**row, "limit": limit}).mappings()]
    )


def owners(connection: Connection, ids: Sequence[str], /) -> dict[str, str | None]:
    """Return the owner of each of these jobs that is not deleted, by id."""
    rows = connection.execute(OWNERS, {"ids": list(ids)}) if ids else ()
    return {str(row.id): row.owner for row in rows}


def search(
    connection: Connection,
    /,
    *,
    words: Sequence[str] = (),
    model: str | None = None,
    owner: str | None = None,
    limit: int = 50,
    **wanted: Any,
) -> tuple[list[Job], str | None]:
    """Return a page of the jobs that are not deleted, newest first, and the `after` of the next one.

    The latter is None at the end.

    Every word is in a found job's prompt, model or id, in whichever case. `wanted` are further
    arguments of `page`. What no index finds is looked for in `LOOKED_AT` jobs at a time, so that a page may
    have fewer jobs than `limit`, or none, although another one follows.
    """
    if not words and (owner is None or model is None):
        found = page(connection, model=model, owner=owner, limit=limit + 1, with_deleted=False, **wanted)
        return found[:limit], found[limit - 1].id if len(found) > limit else None
    folded = [word.casefold() for word in words]
    # No index is of keys and models: a key's jobs are looked at for the model.
    indexed = model if owner is None else None
    where, row = _conditions(model=indexed, owner=owner, with_deleted=False, **wanted)
    hint = _along(connection, wanted.get("status"))
    look = text(f"select j.id, j.model, j.spec from jobs j{hint}{where} order by j.id desc limit :looked_at")
    looked_at = connection.execute(look, {**row, "looked_at": LOOKED_AT}).all()
    ids = [one.id for one in looked_at if model in (None, one.model) and _has(folded, one)]
    last = looked_at[-1].id if len(looked_at) == LOOKED_AT else None
    if len(ids) > limit:
        last = ids[limit - 1]
    if not ids:
        return [], last
    rows = connection.execute(JOBS, {"ids": ids[:limit]}).mappings()
    return _jobs(connection, [dict(one) for one in rows]), last


def _has(folded: Sequence[str], row: Any) -> bool:
    if not folded:
        return True
    text_of_job = f"{json.loads(row.spec).get('prompt', '')}\n{row.model}\n{row.id}".casefold()
    return all(word in text_of_job for word in folded)


def _along(connection: Connection, status: JobStatus | None) -> str:
    """Return the index that SQLite must take for jobs that have not ended: of a key or model, too.

    It would take the key's or the model's index, and walk past all that have ended. PostgreSQL knows how many
    jobs each status has.
    """
    is_open = status is not None and not status.is_terminal
    return " indexed by jobs_of_status" if is_open and connection.dialect.name == "sqlite" else ""


def _conditions(
    *,
    status: JobStatus | None = None,
    model: str | None = None,
    owner: str | None = None,
    since: float | None = None,
    before: float | None = None,
    after: str | None = None,
    newest_first: bool = True,
    with_deleted: bool = True,
    ended: bool = False,
) -> tuple[str, dict[str, Any]]:
    """Return the `where` clause of these filters, "" without any, and its parameters."""
    equal = {"status": status, "model": model, "owner": owner}
    conditions = [f"j.{name} = :{name}" for name, value in equal.items() if value is not None]
    row: dict[str, Any] = {**equal, "after": after}
    if status is not None and not status.is_terminal:
        # Literally: a plan for any status does not suit one of few jobs, and takes no partial index.
        conditions[0] = f"j.status = '{status.value}'"
    if not with_deleted:
        conditions.append("j.deleted_at is null")
    if ended or (status is not None and status.is_terminal):
        conditions.append("j.finished_at is not null")  # a condition of the indexes of ended jobs
    if since is not None:
        # Ids begin with a time that is never before the job's creation: the index of ids ends the search.
        conditions += ["j.created_at >= :since", "j.id >= :first_id"]
        row |= {"since": since, "first_id": first_id_of(since)}
    if before is not None:
        # By the ids, which begin the search. Only after a jump of the clock they begin with another time.
        conditions.append("j.id < :before_id")
        row["before_id"] = first_id_of(before)
    if after is not None:
        conditions.append(f"j.id {'<' if newest_first else '>'} :after")
    return f" where {' and '.join(conditions)}" if conditions else "", row


def _jobs(connection: Connection, found: list[dict[str, Any]]) -> list[Job]:
    """Return the jobs of rows with `JOB_COLUMNS` and `rank`, with their places in the queue."""
    places = _places(connection, [row["rank"] for row in found if row["status"] == JobStatus.QUEUED])
    for row in found:
        place = places.get(row.pop("rank"))
        row["queue_position"] = place if row["status"] == JobStatus.QUEUED else None
    return [job_of(row) for row in found]


def _places(connection: Connection, ranks: list[float]) -> dict[float, int]:
    """Return positions in the queue (from 1 to `MAX_POSITION`) by rank.

    Jobs before the lowest rank are counted only once.
    """
    if not ranks:
        return {}
    ends = {"lowest": min(ranks), "highest": max(ranks)}
    before = connection.execute(COUNT_BEFORE, ends).scalar_one()
    among = connection.execute(RANKS, {**ends, "limit": MAX_POSITION - 1 - before}).scalars().all()
    return {rank: before + bisect_left(among, rank) + 1 for rank in ranks}


def counts(connection: Connection) -> dict[JobStatus, int]:
    """Return the number of jobs in each status."""
    found = {JobStatus(row[0]): int(row[1]) for row in connection.execute(COUNTS)}
    return {status: found.get(status, 0) for status in JobStatus}


def oldest_queued_at(connection: Connection) -> float | None:
    """Return since when the longest waiting job has been queued; None if none waits."""
    found = connection.execute(OLDEST_QUEUED).scalar()
    return None if found is None else float(found)


def queued(connection: Connection) -> int:
    """Return the number of queued jobs."""
    return int(connection.execute(QUEUED).scalar_one())


def last_event(connection: Connection) -> int:
    """Return the highest event number, or 0 if there are no events."""
    return int(connection.execute(LAST_EVENT).scalar_one())


def queued_models(connection: Connection) -> list[str]:
    """Return the names of the models that queued jobs use."""
    return [str(row.model) for row in connection.execute(QUEUED_MODELS)]


def queued_beyond(
    connection: Connection, model: str, capacity_bytes: int, limit: int = 1000
) -> Mapping[str, int]:
    """Return the bytes needed by each queued job of a model that needs more than `capacity_bytes`, by id.

    Unknown needs count as 0 bytes.
    """
    row = {"model": model, "capacity": capacity_bytes, "limit": limit}
    return {str(one.id): int(one.needed_bytes) for one in connection.execute(QUEUED_BEYOND, row)}
