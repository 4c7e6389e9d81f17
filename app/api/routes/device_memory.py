"""GET /devices/memory: the memory of every device over the last hour, with the decodes."""

from collections.abc import Sequence
from typing import Annotated

from fastapi import APIRouter, Query

from app.api.access import Caller
from app.api.dependencies import TheService
from app.api.problems import documented
from app.api.response_schemas import DEVICE_MEMORY, answer
from app.api.views import timestamp
from app.jobs import Json
from app.service.gpus.memory_history import Decode, Reading

router = APIRouter(tags=["service"])


@router.get(
    "/devices/memory",
    summary="The memory of the last hour",
    responses={**answer(DEVICE_MEMORY), **documented(401)},
)
def device_memory(
    service: TheService,
    owner: Caller,
    minutes: Annotated[float, Query(gt=0, le=60, description="How far back.")] = 60,
) -> Json:
    """Return each device's readings, one in four seconds, and the decodes that ran meanwhile.

    The API process keeps them in memory, so that they begin when it started. Peaks are bytes above what was
    in use when the decode began. `job_id` is null for a job that was deleted or that another key submitted.
    """
    now = service.store.time()
    since = now - 60 * minutes
    decodes = service.memory_history.decodes(since)
    scope = service.keys.scope(owner)
    owners = service.store.owners([one.job_id for one in decodes])
    shown = {job_id for job_id, of in owners.items() if scope is None or of == scope}
    return {
        "now": timestamp(now),
        "devices": [_device(*each) for each in service.memory_history.readings(since).items()],
        "decodes": [_decode(one, one.job_id in shown) for one in decodes],
    }


def _device(worker_id: str, readings: Sequence[Reading]) -> Json:
    return {
        "worker_id": worker_id,
        "times": [timestamp(one.at) for one in readings],
        "total_bytes": [one.total_bytes for one in readings],
        "free_bytes": [one.free_bytes for one in readings],
        "own_bytes": [one.own_bytes for one in readings],
    }


def _decode(decode: Decode, is_shown: bool) -> Json:
    return {
        "job_id": decode.job_id if is_shown else None,
        "worker_id": decode.worker_id,
        "started_at": timestamp(decode.started_at),
        "ended_at": timestamp(decode.ended_at),
        "predicted_peak_bytes": decode.predicted_peak_bytes,
        "measured_peak_bytes": decode.measured_peak_bytes,
    }
