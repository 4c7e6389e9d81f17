"""Deletion of jobs: for their clients, and of old ones for the operator.

A job's row says where its deletion stands:

deleted_at is set   the deletion is requested. Nothing of the job is served or queued again. A job that has
                    not ended is canceled, and the rest waits until it has.
erased_at is set    its files and images are gone, and so are its texts, webhooks and reports. The row keeps
                    the id, times and numbers.
the row is gone     the job was older than the operator keeps jobs (`remove_jobs`).

The files go first, outside any transaction. A crash at any point leaves a request that is not yet settled,
and the next turn repeats it: every step may be taken twice.
"""

from collections.abc import Sequence
from typing import Any

from sqlalchemy import BindParameter, Connection, bindparam, text

from app.jobs import Job, JobSpec
from app.store import intake
from app.store.errors import NoSuchJob
from app.store.rows import append_event, fetch_job, lock_job
from app.store.transaction import Locking, Transaction
from app.store.upkeep.erased_events import erase_events

# A response that began before the request opens its file within this time.
GRACE_SECONDS = 5.0
LIMIT = 100

REQUEST = text("update jobs set deleted_at = :now where id = :id and deleted_at is null")
FORGET_DELIVERIES = text("delete from deliveries where job_id = :id")
FORGET_PICTURES = text("delete from job_pictures where job_id = :id")
_ENDED = "finished_at is not null"  # a condition on `status` would draw SQLite to the index of all ended jobs
_TO_ERASE = f"deleted_at <= :before and erased_at is null and {_ENDED}"
TO_ERASE = text(f"select id from jobs where {_TO_ERASE} order by deleted_at limit :limit")
ERASE = text(f"""
    update jobs set erased_at = :now, swept_at = coalesce(swept_at, :now), expired = true, spec = :spec,
        plan = null, denoise = null, decode = null, result = null, error = null, latents_path = null,
        webhook = null, setbacks = null, idempotency_key = null, fingerprint = ''
    where id = :id and deleted_at is not null and erased_at is null and {_ENDED}
""")
# Ids begin with the time of creation, so that the first old jobs are found without another index.
_OLD = f"id < :bound and finished_at < :before and {_ENDED}"
OLD = Locking.of(
    f"select id from jobs where {_OLD} and deleted_at is null order by id limit :limit", skip=True
)
ANY_OLD = text(f"select 1 from jobs where {_OLD} limit :limit")
OLD_AND_ERASED = text(f"select id from jobs where {_OLD} and erased_at is not null order by id limit :limit")
_THESE: BindParameter[Any] = bindparam("ids", expanding=True)
REMOVE = text("delete from jobs where id in :ids and erased_at is not null").bindparams(_THESE)
WITHOUT_FILES = text("""
    select id from jobs where id in :ids and (erased_at is not null or (expired and swept_at is not null))
""").bindparams(_THESE)
KNOWN = text("select id from jobs where id in :ids").bindparams(_THESE)

# What an erased job's specification keeps: the model, and numbers that no image or text can be told from.
KEPT_FIELDS = ("model", "width", "height", "num_frames", "fps", "num_inference_steps", "priority")


def delete(tx: Transaction, job_id: str) -> bool:
    """Request the deletion of a job, and cancel it if it has not ended.

    Returns False if it was requested before. Raises `NoSuchJob`.
    """
    # In this order: the row is locked before its status is read.
    if not tx.execute(REQUEST, {"id": job_id, "now": tx.now}).rowcount:
        fetch_job(tx.connection, job_id)
        return False
    append_event(tx, job_id, "deleted", {})  # what follows is not served
    if not fetch_job(tx.connection, job_id).status.is_terminal:
        intake.cancel(tx, job_id)
    tx.execute(FORGET_DELIVERIES, {"id": job_id})
    return True


def to_erase(connection: Connection, *, now: float, limit: int = LIMIT) -> list[str]:
    """Return the ids of deleted jobs that have ended and whose content is still there."""
    wanted = {"before": now - GRACE_SECONDS, "limit": limit}
    return list(connection.execute(TO_ERASE, wanted).scalars())


def erase(tx: Transaction, job_id: str) -> bool:
    """Erase what the database holds of a deleted job whose files are gone; False if nothing was to do."""
    try:
        job = lock_job(tx, job_id)
    except NoSuchJob:  # removed by another process
        return False
    row = {"id": job_id, "now": tx.now, "spec": _numbers_of(job).model_dump_json()}
    if not tx.execute(ERASE, row).rowcount:
        return False
    tx.execute(FORGET_PICTURES, {"id": job_id})
    tx.execute(FORGET_DELIVERIES, {"id": job_id})
    erase_events(tx, job_id)
    return True


def _numbers_of(job: Job) -> JobSpec:
    kept = {name: getattr(job.spec, name) for name in KEPT_FIELDS}
    return JobSpec.model_validate({**kept, "guidance_scale": 0, "seed": 0})


def request_old(tx: Transaction, ttl_seconds: float) -> list[str]:
    """Request the deletion of jobs that ended longer ago than `ttl_seconds`; return their ids."""
    ids = list(tx.execute(OLD, older(tx.now, ttl_seconds)).scalars())
    for job_id in ids:
        delete(tx, job_id)
    return ids


def remove_old(tx: Transaction, ttl_seconds: float) -> list[str]:
    """Remove erased jobs that ended longer ago than `ttl_seconds`; return their ids."""
    ids = list(tx.execute(OLD_AND_ERASED, older(tx.now, ttl_seconds)).scalars())
    remove_jobs(tx, ids)
    return ids


def remove_jobs(tx: Transaction, job_ids: Sequence[str]) -> None:
    """Remove the rows of erased jobs: the only way that a row leaves the job table.

    The events that metrics count stay, without texts, so that no counter goes down.
    """
    if job_ids:
        tx.execute(REMOVE, {"ids": list(job_ids)})


def older(now: float, ttl_seconds: float) -> dict[str, float | str | int]:
    """Return the parameters of the queries for jobs that ended longer ago than `ttl_seconds`."""
    before = now - ttl_seconds
    return {"before": before, "bound": f"{max(0, int(1000 * before)) << 80:032x}", "limit": LIMIT}


def without_files(connection: Connection, job_ids: Sequence[str]) -> tuple[list[str], list[str]]:
    """Return which of these jobs must have no files any more, and which are not in the table at all."""
    wanted = {"ids": list(job_ids)}
    gone = list(connection.execute(WITHOUT_FILES, wanted).scalars())
    known = set(connection.execute(KNOWN, wanted).scalars())
    return gone, [job_id for job_id in job_ids if job_id not in known]
