"""What the job table knows of workers. Runs inside the caller's transaction.

A worker's `device` is JSON: name, kind ("cuda" or "cpu"), uuid, index, total_bytes, free_bytes, own_bytes,
other_bytes, capacity_bytes (the most a decode could use with everything else gone, less the reserve),
utilization (0 to 1), state, models, loaded_model. All but `name` may be absent.
"""

from sqlalchemy import Connection, text

from app.jobs import Json, WorkerRow
from app.store.rows import dump, load

REGISTER = text("""
    insert into workers (id, device, device_name, started_at, heartbeat_at)
    values (:id, :device, :device_name, :now, :now)
""")
FORGET_OLD = text("delete from workers where heartbeat_at < :before")
FORGET = text("delete from workers where id = :id")
BEAT = text("update workers set device = :device, job_id = :job_id, heartbeat_at = :now where id = :id")
IS_PAUSED = text("""
    select 1 from workers w join paused_devices p on p.device_name = w.device_name where w.id = :id
""")
SELECT_WORKERS = text("""
    select w.id, w.device, w.job_id, w.started_at, w.heartbeat_at, p.device_name as paused
    from workers w left join paused_devices p on p.device_name = w.device_name
    where w.heartbeat_at >= :since order by w.device_name, w.started_at
""")
RESUME_DEVICE = text("delete from paused_devices where device_name = :name")
PAUSE_DEVICE = text("insert into paused_devices (device_name) values (:name)")
OLD_AFTER_SECONDS = 24 * 3600.0


def register(connection: Connection, worker_id: str, device: Json, now: float) -> None:
    """Add a worker, or add it again after it was forgotten; rows of workers long gone are dropped."""
    connection.execute(FORGET_OLD, {"before": now - OLD_AFTER_SECONDS})
    connection.execute(FORGET, {"id": worker_id})
    row = {
        "id": worker_id,
        "device": dump(device),
        "device_name": str(device.get("name", worker_id)),
        "now": now,
    }
    connection.execute(REGISTER, row)


def beat(connection: Connection, worker_id: str, device: Json, job_id: str | None, now: float) -> bool:
    """Note that a worker lives; returns whether its device is paused."""
    row = {"id": worker_id, "device": dump(device), "job_id": job_id, "now": now}
    if not connection.execute(BEAT, row).rowcount:
        register(connection, worker_id, device, now)
        connection.execute(BEAT, row)
    return connection.execute(IS_PAUSED, {"id": worker_id}).one_or_none() is not None


def forget(connection: Connection, worker_id: str) -> None:
    """Drop a worker that has ended."""
    connection.execute(FORGET, {"id": worker_id})


def pause(connection: Connection, device_name: str, *, paused: bool) -> None:
    """Stop a device from claiming jobs, or let it again; a running job goes on."""
    connection.execute(RESUME_DEVICE, {"name": device_name})
    if paused:
        connection.execute(PAUSE_DEVICE, {"name": device_name})


def select_workers(connection: Connection, since: float) -> list[WorkerRow]:
    """Workers that were heard from at or after `since`, by device."""
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
