"""The tables of workers, of paused workers, and of the services that share the database.

A worker's id is `host/device/instance`; the instance is the id in its service's data folder.
A worker's `device` is JSON: name, kind ("cuda" or "cpu"), uuid, index, total_bytes, free_bytes, own_bytes,
other_bytes, capacity_bytes (the most a decode could use if nothing else held memory, less the reserve),
host_capacity_bytes (the same on the CPU, if decoding there is allowed), learned
(`adaptive.memory.learned_costs`), utilization (0 to 1), state, models, loaded_model. Only `name` is required.
"""

from dataclasses import dataclass

from sqlalchemy import Connection, text

from app.attempts import Stop
from app.jobs import Json, WorkerRow
from app.store import claims, leases
from app.store.rows import dump, load
from app.store.transaction import NOW, Statement, Transaction

REGISTER = text("""
    insert into workers (id, device, device_name, started_at, heartbeat_at)
    values (:id, :device, :device_name, :now, :now)
""")
FORGET_OLD = text("delete from workers where heartbeat_at < :before")
FORGET = text("delete from workers where id = :id")
BEAT = text("update workers set device = :device, job_id = :job_id, heartbeat_at = :now where id = :id")
TOUCH = text("update workers set device = device where id = :id")
# One statement: it is the most frequent of all. It does not wait for the disk: a server that crashes may
# forget the reports of its last moment (three times `wal_writer_delay`, 0.6 s). The next heartbeat makes up
# for them. If none comes, the lease ends that much earlier, and the job's token keeps a worker that believes
# in the later end from changing anything.
BEAT_AT_ONCE = Statement.of(f"""
    with beat as (
        update workers set device = :device, job_id = :job_id, heartbeat_at = {NOW}
        where id = :id returning id, device_name
    ), lease as (
        update jobs set lease_until = {NOW} + :lease_seconds
        where id = :job_id and token = cast(:token as bigint) and status = 'running'
        returning cancel_requested
    )
    select exists (select 1 from beat) as known,
        exists (select 1 from beat w join paused_workers p on {claims.PAUSES}) as paused,
        (select cancel_requested from lease) as cancel_requested,
        set_config('synchronous_commit', 'off', true)
""")
SELECT_WORKERS = text(f"""
    select w.id, w.device, w.job_id, w.started_at, w.heartbeat_at,
        exists (select 1 from paused_workers p where {claims.PAUSES}) as paused
    from workers w where w.heartbeat_at >= :since order by w.device_name, w.started_at
""")
# What a pause of the worker, of its device or of its place on the host left behind.
RESUME = text("""
    delete from paused_workers where worker_id = :id
        or substr(:id, 1, length(worker_id) + 1) = worker_id || '/'
        or worker_id in (select device_name from workers where id = :id)
""")
PAUSE = text("insert into paused_workers (worker_id) values (:id)")
SELECT_INSTANCE = text("select process from instances where id = :id")
FORGET_INSTANCE = text("delete from instances where id = :id")
ADD_INSTANCE = text("""
    insert into instances (id, host, process, started_at) values (:id, :host, :process, :now)
""")
LATEST_BEAT = text("select max(heartbeat_at) from workers where id like '%/' || :id")
OLD_AFTER_SECONDS = 24 * 3600.0


@dataclass(frozen=True, slots=True)
class Heartbeat:
    """The answer to a worker's heartbeat.

    `cancel_requested`: stop the job. `lost`: the worker no longer holds the job. `paused`: claim no new job.
    """

    cancel_requested: bool
    lost: bool
    paused: bool = False


def touch_worker(tx: Transaction, worker_id: str) -> None:
    """Write a worker's row as its heartbeat does, and change nothing: what stops the one stops the other."""
    tx.execute(TOUCH, {"id": worker_id})


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
    answer = tx.first(BEAT_AT_ONCE, row)
    if answer is None or not answer["known"]:
        register_worker(tx, worker_id, device)
        answer = tx.first(BEAT_AT_ONCE, row)
    assert answer is not None, "the statement selects one row"
    lost = job_id is not None and token is not None and answer["cancel_requested"] is None
    return Heartbeat(bool(answer["cancel_requested"]), lost, answer["paused"])


def forget_worker(
    tx: Transaction, worker_id: str, reason: str = "worker_lost", stop: Stop | None = None
) -> list[str]:
    """Delete the row of a worker that has ended and requeue its jobs; return the jobs' ids.

    `reason` is one of `app.attempts.BLAME`; `stop` is the service's stop that ended the worker, if one did.
    """
    returned = leases.release_all(tx, leases.RUNNING_OF, {"worker_id": worker_id}, reason, stop)
    tx.execute(FORGET, {"id": worker_id})
    return returned


def pause_worker(tx: Transaction, worker_id: str, *, paused: bool) -> None:
    """Pause or resume a worker; the state survives restarts. A paused worker still finishes its job."""
    tx.execute(RESUME, {"id": worker_id})
    if paused:
        tx.execute(PAUSE, {"id": worker_id})


def enroll(tx: Transaction, instance: str, *, host: str, process: str) -> None:
    """Record that this process is the service with that instance id."""
    tx.execute(FORGET_INSTANCE, {"id": instance})
    tx.execute(ADD_INSTANCE, {"id": instance, "host": host, "process": process, "now": tx.now})


def instance_of(connection: Connection, instance: str) -> tuple[str, float | None] | None:
    """Return the process that enrolled last with an instance id, and when its workers were last heard from.

    None if no process has.
    """
    process = connection.execute(SELECT_INSTANCE, {"id": instance}).scalar()
    if process is None:
        return None
    return str(process), connection.execute(LATEST_BEAT, {"id": instance}).scalar()


def select_workers(connection: Connection, since: float) -> list[WorkerRow]:
    """Return workers with a heartbeat at or after `since` (seconds since the epoch), sorted by device."""
    return [
        WorkerRow(
            id=row.id,
            device=load(row.device) or {},
            job_id=row.job_id,
            state="paused" if row.paused else "active",
            started_at=row.started_at,
            heartbeat_at=row.heartbeat_at,
        )
        for row in connection.execute(SELECT_WORKERS, {"since": since})
    ]
