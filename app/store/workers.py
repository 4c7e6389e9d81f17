"""The table of workers and paused devices.

A worker's `device` is JSON: name, kind ("cuda" or "cpu"), uuid, index, total_bytes, free_bytes, own_bytes,
other_bytes, capacity_bytes (the most a decode could use if nothing else held memory, less the reserve),
host_capacity_bytes (the same on the CPU, if decoding there is allowed), learned
(`adaptive.memory.learned_costs`), utilization (0 to 1), state, models, loaded_model. Only `name` is required.
"""

from sqlalchemy import Connection, text

from app.jobs import Heartbeat, Json, WorkerRow
from app.store import claims, leases
from app.store.rows import dump, load
from app.store.transaction import Transaction

REGISTER = text("""
    insert into workers (id, device, device_name, started_at, heartbeat_at)
    values (:id, :device, :device_name, :now, :now)
""")
FORGET_OLD = text("delete from workers where heartbeat_at < :before")
FORGET = text("delete from workers where id = :id")
BEAT = text("update workers set device = :device, job_id = :job_id, heartbeat_at = :now where id = :id")
# One statement: it is the most frequent of all.
BEAT_AT_ONCE = text("""
    with moment as (
        select coalesce(cast(:now as double precision), extract(epoch from clock_timestamp())) as now
    ), beat as (
        update workers set device = :device, job_id = :job_id, heartbeat_at = m.now from moment m
        where id = :id returning id, device_name
    ), lease as (
        update jobs set lease_until = m.now + :lease_seconds from moment m
        where id = :job_id and token = cast(:token as bigint) and status = 'running'
        returning cancel_requested
    )
    select exists (select 1 from beat) as known,
        exists (select 1 from beat b join paused_devices p on p.device_name = b.device_name) as paused,
        (select cancel_requested from lease) as cancel_requested
""")
SELECT_WORKERS = text("""
    select w.id, w.device, w.job_id, w.started_at, w.heartbeat_at, p.device_name as paused
    from workers w left join paused_devices p on p.device_name = w.device_name
    where w.heartbeat_at >= :since order by w.device_name, w.started_at
""")
RESUME_DEVICE = text("delete from paused_devices where device_name = :name")
PAUSE_DEVICE = text("insert into paused_devices (device_name) values (:name)")
OLD_AFTER_SECONDS = 24 * 3600.0


def register_worker(tx: Transaction, worker_id: str, device: Json) -> None:
    """Add or replace a worker's row; delete the rows of workers not heard from for a day."""
    tx.execute(FORGET_OLD, {"before": tx.now - OLD_AFTER_SECONDS})
    tx.execute(FORGET, {"id": worker_id})
    name = str(device.get("name", worker_id))
    tx.execute(REGISTER, {"id": worker_id, "device": dump(device), "device_name": name, "now": tx.now})


def heartbeat(
    tx: Transaction,
    worker_id: str,
    *,
    device: Json,
    job_id: str | None = None,
    token: int | None = None,
    lease_seconds: float = 30.0,
) -> Heartbeat:
    """Store a worker's report and extend its job's lease; return whether to cancel, drop or pause."""
    if tx.is_postgresql:
        return _beat_at_once(tx, worker_id, device, job_id, token, lease_seconds)
    row = {"id": worker_id, "device": dump(device), "job_id": job_id, "now": tx.now}
    if not tx.execute(BEAT, row).rowcount:
        register_worker(tx, worker_id, device)
        tx.execute(BEAT, row)
    paused = tx.execute(claims.IS_PAUSED, {"id": worker_id}).one_or_none() is not None
    if job_id is None or token is None:
        return Heartbeat(False, False, paused)
    return Heartbeat(*leases.extend(tx, job_id, token, lease_seconds), paused)


def _beat_at_once(
    tx: Transaction, worker_id: str, device: Json, job_id: str | None, token: int | None, lease_seconds: float
) -> Heartbeat:
    row = {
        "id": worker_id,
        "device": dump(device),
        "job_id": job_id,
        "token": token,
        "lease_seconds": lease_seconds,
        "now": tx.given_now,
    }
    answer = tx.execute(BEAT_AT_ONCE, row).one()
    if not answer.known:
        register_worker(tx, worker_id, device)
        answer = tx.execute(BEAT_AT_ONCE, row).one()
    lost = job_id is not None and token is not None and answer.cancel_requested is None
    return Heartbeat(bool(answer.cancel_requested), lost, answer.paused)


def forget_worker(tx: Transaction, worker_id: str, reason: str = "worker_lost") -> list[str]:
    """Delete the row of a worker that has ended and requeue its jobs; return the jobs' ids."""
    returned = leases.release_all(tx, leases.RUNNING_OF, {"worker_id": worker_id}, reason)
    tx.execute(FORGET, {"id": worker_id})
    return returned


def pause_device(tx: Transaction, device_name: str, *, paused: bool) -> None:
    """Pause or resume a device; the state survives restarts. A paused device still finishes its job."""
    tx.execute(RESUME_DEVICE, {"name": device_name})
    if paused:
        tx.execute(PAUSE_DEVICE, {"name": device_name})


def select_workers(connection: Connection, since: float) -> list[WorkerRow]:
    """Return workers with a heartbeat at or after `since` (seconds since the epoch), sorted by device."""
    return [
        WorkerRow(
            id=row.id,
            device=load(row.device) or {},
            job_id=row.job_id,
            state="active" if row.paused is None else "paused",
            started_at=row.started_at,
            heartbeat_at=row.heartbeat_at,
        )
        for row in connection.execute(SELECT_WORKERS, {"since": since})
    ]
