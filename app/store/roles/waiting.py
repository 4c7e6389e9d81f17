"""Read-only queries for a handover: which decodes are before a job's own, and what waits for its worker."""

from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import Connection, bindparam, text

from app.jobs import STAGE_PROGRESS, Stage
from app.store.rows import load

MOST = 100  # jobs that are counted
HEAD = 200  # of the queue
DECODES = text(f"""
    select worker_id, model, stage, progress, handover, rank, id from jobs
    where status = 'running' and latents_path is not null
    union all
    select * from (
        select cast(null as text) as worker_id, model, stage, progress, handover, rank, id from jobs
        where status = 'queued' and latents_path is not null and not kept_from_decoders
        order by rank, id limit {MOST}
    ) waiting
    order by rank, id
""")
NEXT_DENOISES = text(f"""
    select plan, expected_seconds from (
        select plan, expected_seconds, model, needed_bytes, stage, latents_path, rank, id from jobs
        where status = 'queued' order by rank, id limit {HEAD}
    ) head
    where latents_path is null and stage <> 'held' and model in :models
        and coalesce(needed_bytes, 0) <= :capacity
    order by rank, id limit {MOST}
""").bindparams(bindparam("models", expanding=True))


@dataclass(frozen=True, slots=True)
class Decode:
    """A decode that runs on `worker_id`, or waits (None). `left` is the share of it that is not done.

    `seconds` is what was predicted for it when it was handed over, and `seconds_at_denoiser` what it would
    have taken there; None if it was not handed over.
    """

    worker_id: str | None
    left: float
    seconds: float | None = None
    model: str = ""
    seconds_at_denoiser: float | None = None


@dataclass(frozen=True, slots=True)
class NextDenoises:
    """How many jobs wait to be denoised; of the first, the seconds of its denoise or in all, where known."""

    count: int
    denoise_seconds: float | None = None
    expected_seconds: float | None = None


def decodes_of(connection: Connection) -> list[Decode]:
    """Return the decodes that run and those that wait, in the order of the queue."""
    begin, end = STAGE_PROGRESS[Stage.DECODING]
    found = []
    for row in connection.execute(DECODES):
        done = (row.progress - begin) / (end - begin) if row.stage == Stage.DECODING else 0.0
        left = min(1.0, max(0.0, 1.0 - done)) if row.stage != Stage.ENCODING else 0.0
        told = load(row.handover) or {}
        seconds = (told.get("decode_seconds"), told.get("decode_seconds_here"))
        found.append(Decode(row.worker_id, left, seconds[0], row.model, seconds[1]))
    return found


def next_denoises(connection: Connection, *, models: Sequence[str], capacity_bytes: int) -> NextDenoises:
    """Return what waits at the queue's head for a worker of that capacity to denoise it."""
    wanted = {"models": list(models), "capacity": capacity_bytes}
    rows = connection.execute(NEXT_DENOISES, wanted).all()
    if not rows:
        return NextDenoises(0)
    plan = load(rows[0].plan) or {}
    return NextDenoises(len(rows), plan.get("denoise_seconds"), rows[0].expected_seconds)
