"""Giving way: a worker's job goes back to the queue, and the worker gets another one at once.

One transaction requeues the job at its old rank and leases the other one to the same worker. No other worker
can claim in between, and another worker may claim the requeued job. Its attempt is not counted.

Backfill: a worker whose job waits for memory runs smaller jobs in the meantime. A job yields so at most
`max_skips` times; after that it keeps its worker until it fits or its waiting time ends.

Preemption: a job whose steps are saved gives way to one of higher priority, at most `MOST_PREEMPTIONS` times.
`app.scheduling.preemption` decides when.

A handover gives a denoised job back without another one: `app.scheduling.handover` decides when. A worker
that only decodes gives back what it cannot decode.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, bindparam, text

from app.jobs import Claim, Json, Stage
from app.store import claims, leases
from app.store.roles.parts import CONDITIONS, WHOLE_QUEUE, Part, Share
from app.store.rows import append_event, dump, load
from app.store.transaction import Locking, Transaction

MOST_PREEMPTIONS = 2

# A job with unknown needs is not selected: it could need as much as the waiting one.
_SMALLER = """
    select id, model, priority, skips, queued_at from jobs
    where status = 'queued' and stage <> 'held' and id <> :id and model = :model
        and needed_bytes <= :room_bytes{part}
    order by rank, id limit 1"""
SMALLER = {
    share: Locking.of(
        _SMALLER.replace("{part}", condition),
        *([bindparam("left_models", expanding=True)] if ":left_models" in condition else []),
        skip=True,
    )
    for share, condition in CONDITIONS.items()
}
WAITING = Locking.of("""
    select skips from jobs
    where id = :id and token = :token and status = 'running' and not cancel_requested
""")
# Of the queue's head: what is far behind it does not wait for this job.
URGENT = {
    share: claims.prepared(
        f"""
    select id, model, priority, needed_bytes, queued_at, latents_path is not null as is_denoised from (
        select id, model, priority, needed_bytes, queued_at, stage, rank, latents_path, kept_from_decoders
        from jobs where status = 'queued' order by rank, id limit {claims.HEAD}
    ) head
    where priority > :priority and stage <> 'held'
        and coalesce(needed_bytes, 0) <= :capacity{{models}}{{part}}
    order by rank, id limit 1
""",
        share,
        some_models=True,
    )
    for share in Share
}
RUNNING = text("""
    select worker_id, progress, expected_seconds, stage, download from jobs
    where status = 'running' and worker_id is not null
""")
GIVING_WAY = Locking.of("""
    select priority, preempted from jobs
    where id = :id and token = :token and status = 'running' and not cancel_requested
""")
TAKING_OVER = Locking.of(
    """
    select id, model, priority, queued_at from jobs
    where id = :id and status = 'queued' and stage <> 'held' and priority > :priority
    """,
    skip=True,
)
HOLDING = Locking.of("""
    select worker_id, handover from jobs
    where id = :id and token = :token and status = 'running' and latents_path is not null
""")
NOTE_HANDOVER = text("update jobs set handover = :handover where id = :id")
KEEP_FROM_DECODERS = text("update jobs set kept_from_decoders = true where id = :id")
FORGET_LATENTS = text("update jobs set latents_path = null, handover = null where id = :id")
NOTE_PREEMPTED = text("update jobs set preempted = :preempted where id = :id")


@dataclass(frozen=True, slots=True)
class Urgent:
    """A queued job of higher priority than a running one. `queued_at` is in seconds since the epoch."""

    id: str
    model: str
    priority: int
    needed_bytes: int
    queued_at: float
    is_denoised: bool = False


@dataclass(frozen=True, slots=True)
class Running:
    """How far a running job is (0 to 1), and the seconds that it was expected to take; None if unknown.

    `download_seconds` is how long it still downloads its model before that; None if unknown.
    """

    worker_id: str
    progress: float
    expected_seconds: float | None
    download_seconds: float | None = 0.0


def yield_to_smaller(
    tx: Transaction,
    job_id: str,
    token: int,
    worker_id: str,
    *,
    model: str,
    room_bytes: int,
    lease_seconds: float = 30.0,
    part: Part = WHOLE_QUEUE,
) -> Claim | None:
    """Requeue a waiting job and lease a smaller one to its worker.

    The smaller job is the first of the worker's part of the queue that uses the loaded `model` and needs at
    most `room_bytes`. The waiting job's attempt is not counted.

    Returns None if there is no such job, the waiting job has yielded `max_skips` times, the device is paused,
    or the caller no longer holds the waiting job.
    """
    waiting = tx.execute(WAITING, {"id": job_id, "token": token}).one_or_none()
    if waiting is None or waiting.skips >= tx.rules.max_skips:
        return None
    if tx.execute(claims.IS_PAUSED, {"id": worker_id}).one_or_none() is not None:
        return None
    wanted = {**part.parameters, "id": job_id, "model": model, "room_bytes": room_bytes}
    smaller = tx.execute(SMALLER[part.share], wanted).mappings().one_or_none()
    if smaller is None:
        return None
    leases.release(tx, job_id, token, "made_way_for_a_smaller_job", refund=True)
    tx.execute(claims.PASS_OVER, {"id": job_id})
    return claims.take(tx, smaller, worker_id, lease_seconds)


def urgent(
    connection: Connection,
    priority: int,
    *,
    models: Sequence[str],
    capacity_bytes: int,
    part: Part = WHOLE_QUEUE,
) -> Urgent | None:
    """Return the first job at the queue's head with a higher priority that a worker could run; else None."""
    wanted = {**part.parameters, "priority": priority, "models": list(models), "capacity": capacity_bytes}
    row = connection.execute(URGENT[part.share], wanted).one_or_none()
    if row is None:
        return None
    denoised = bool(row.is_denoised)
    return Urgent(row.id, row.model, row.priority, row.needed_bytes or 0, row.queued_at, denoised)


def running(connection: Connection) -> list[Running]:
    """Return how far the running jobs are."""
    return [
        Running(row.worker_id, row.progress, row.expected_seconds, _download_seconds(row))
        for row in connection.execute(RUNNING)
    ]


def _download_seconds(row: Any) -> float | None:
    if row.stage != Stage.DOWNLOADING:
        return 0.0
    left: float | None = (load(row.download) or {}).get("seconds_left")
    return left


def preempt(
    tx: Transaction,
    job_id: str,
    token: int,
    worker_id: str,
    *,
    by: str,
    step: int,
    steps: int,
    lease_seconds: float = 30.0,
) -> Claim | None:
    """Requeue a running job whose first `step` of `steps` are saved, and lease the job `by` to its worker.

    Returns None, and changes nothing, if the job `by` is no longer queued or has no higher priority, the
    running job was preempted `MOST_PREEMPTIONS` times or is canceled, the device is paused, or the caller no
    longer holds the job.
    """
    giving_way = tx.execute(GIVING_WAY, {"id": job_id, "token": token}).one_or_none()
    if giving_way is None or (times := preemptions(load(giving_way.preempted))) >= MOST_PREEMPTIONS:
        return None
    if tx.execute(claims.IS_PAUSED, {"id": worker_id}).one_or_none() is not None:
        return None
    wanted = {"id": by, "priority": giving_way.priority}
    taking_over = tx.execute(TAKING_OVER, wanted).mappings().one_or_none()
    if taking_over is None:
        return None
    kept = {"step": step, "steps": steps}
    # Who it is that took the place is not the owner's business; before `requeued`, which ends the attempt.
    append_event(tx, job_id, "preempted", {"priority": taking_over["priority"], **kept})
    leases.release(tx, job_id, token, "preempted", refund=True)
    tx.execute(NOTE_PREEMPTED, {"id": job_id, "preempted": dump({"times": times + 1, **kept})})
    return claims.take(tx, taking_over, worker_id, lease_seconds)


def hand_over(
    tx: Transaction, job_id: str, token: int, *, data: Json, durations: Mapping[str, float]
) -> bool:
    """Requeue a denoised job for a worker that decodes; return False if the caller lost it.

    `data` goes into the event, with `from`, the worker that denoised. The job's `handover` keeps it, with the
    seconds by stage (`durations`), which the event of the job's end tells as `earlier_durations`.
    """
    holding = tx.execute(HOLDING, {"id": job_id, "token": token}).one_or_none()
    if holding is None:
        return False
    told = {"from": holding.worker_id, **data}
    kept = dump({**told, "durations": dict(durations)})
    append_event(tx, job_id, "handed_over", {**told, "durations": dict(durations)})
    tx.execute(NOTE_HANDOVER, {"id": job_id, "handover": kept})
    return leases.release(tx, job_id, token, "handed_over", refund=True)


def give_decode_back(tx: Transaction, job_id: str, token: int, *, data: Json, denoise_again: bool) -> bool:
    """Requeue what a worker that only decodes cannot decode; return False if the caller lost the job.

    No such worker takes it again. `denoise_again`: its latents cannot be used. `data` goes into the event.
    """
    holding = tx.execute(HOLDING, {"id": job_id, "token": token}).one_or_none()
    if holding is None:
        return False
    append_event(tx, job_id, "decode_given_back", {"from": holding.worker_id, **data})
    tx.execute(KEEP_FROM_DECODERS, {"id": job_id})
    if denoise_again:
        tx.execute(FORGET_LATENTS, {"id": job_id})
    return leases.release(tx, job_id, token, "decode_given_back", refund=True)


def preemptions(preempted: dict[str, int] | None) -> int:
    """Return how often a job gave way, from its column `preempted`."""
    return (preempted or {}).get("times", 0)
