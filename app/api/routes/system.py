"""Routes of the service itself: devices, models, health, metrics, log level."""

from functools import partial
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Path, Request, Response
from fastapi.responses import JSONResponse, PlainTextResponse

from adaptive.device.gpu_processes import gpu_memory_users
from adaptive.device.nvml import GpuInfo, NvmlState
from app.api.access import Administrator, Caller, Monitor
from app.api.dependencies import Service, TheService, readiness, visible
from app.api.problems import Problem, documented
from app.api.response_schemas import DEVICES, HEALTH, LOG_LEVEL, MODELS, READINESS, answer
from app.api.views import device_view, hide_other_owners, model_view
from app.jobs import Json, WorkerRow
from app.service.exposition.formats import Exposition, asked_for
from app.service.gpus.unused import published
from app.service.logs import read_level, write_level
from app.store import JobDeleted, NoSuchJob

router = APIRouter()
REMEMBER_SECONDS = 24 * 3600.0
DeviceName = Annotated[str, Path(max_length=200)]


@router.get(
    "/devices",
    tags=["service"],
    summary="Devices, their memory and workers",
    responses={**answer(DEVICES), **documented(401)},
)
def devices(service: TheService, owner: Caller) -> Json:
    """Return each worker's last report, and the driver's current reading of every GPU with the processes that
    hold its memory.

    `unused_gpus` are the GPUs without a worker, each with its reason and what to do. Where the driver does
    not report a GPU's memory (state `memory_unknown`), the numbers are its worker's. A caller whose API key
    is no admin key does not see the ids of other keys' jobs or the names and ids of other programs.
    """
    workers = service.store.workers(within_seconds=REMEMBER_SECONDS)
    now = service.store.time()
    views = [device_view(worker, now=now, alive_seconds=service.alive_seconds) for worker in workers]
    for one in views:
        one["job_id"] = _if_visible(service, one["job_id"], owner)
    alive, scope = service.alive_workers(), service.keys.scope(owner)
    return {
        "devices": [hide_other_owners(one, scope) for one in views],
        "gpus": [hide_other_owners(_gpu_view(gpu, alive), scope) for gpu in service.nvml.devices()],
        "unused_gpus": [gpu.as_json() for gpu in published(service.settings.data_dir)],
        "driver_state": service.nvml.state,
        "reserve_bytes": service.settings.reserve_bytes,
    }


def _if_visible(service: Service, job_id: str | None, owner: str | None) -> str | None:
    if job_id is None or owner is None:
        return job_id
    try:
        return visible(service, job_id, owner).id
    except (NoSuchJob, JobDeleted):
        return None


def _gpu_view(gpu: GpuInfo, alive: list[WorkerRow]) -> dict[str, Any]:
    """Return the JSON of a GPU; its memory is its worker's report where the driver has none."""
    ours = [worker.device for worker in alive if gpu.uuid and worker.device.get("uuid") == gpu.uuid]
    own_bytes_by_pid = {
        int(one["worker_pid"]): int(one.get("own_bytes") or 0) for one in ours if one.get("worker_pid")
    }
    total, free = gpu.total_bytes, gpu.free_bytes
    if gpu.state is NvmlState.MEMORY_UNKNOWN and ours:
        total, free = int(ours[0].get("total_bytes") or 0), int(ours[0].get("free_bytes") or 0)
    return {
        "holders": [each.as_json() for each in gpu_memory_users(gpu, own_bytes_by_pid)],
        "uuid": gpu.uuid,
        "index": gpu.index,
        "name": gpu.name,
        "state": gpu.state,
        "total_bytes": total,
        "free_bytes": free,
        "used_bytes": total - free,
        "utilization": gpu.utilization,
    }


@router.post(
    "/devices/{name:path}/pause", status_code=204, tags=["service"], responses=documented(401, 403, 404, 409)
)
def pause_device(name: DeviceName, service: TheService, _allowed: Administrator) -> None:
    """Pause a worker: it finishes its job and claims no other.

    `name` is a `worker_id` of `GET /devices`, or a device's name if only one worker has such a device.
    """
    service.store.pause_worker(_worker_named(service, name), paused=True)


@router.post(
    "/devices/{name:path}/resume", status_code=204, tags=["service"], responses=documented(401, 403, 404, 409)
)
def resume_device(name: DeviceName, service: TheService, _allowed: Administrator) -> None:
    """Resume a worker: it claims jobs again. `name` as for `pause`."""
    service.store.pause_worker(_worker_named(service, name), paused=False)


def _worker_named(service: TheService, name: str) -> str:
    known = service.store.workers(within_seconds=REMEMBER_SECONDS)
    if any(worker.id == name for worker in known):
        return name
    alive = {worker.id for worker in service.alive_workers()}
    found = [worker.id for worker in known if worker.device.get("name") == name]
    found = [one for one in found if one in alive] or found
    if not found:
        raise Problem(404, "no_such_device", f"no worker has reported a device {name!r}")
    if len(found) > 1:
        detail = f"several workers have a device {name!r}: name one by its worker_id, {' or '.join(found)}"
        raise Problem(409, "ambiguous_device", detail)
    return found[0]


@router.get(
    "/log-level",
    tags=["service"],
    summary="The log level",
    responses={**answer(LOG_LEVEL), **documented(401)},
)
def log_level(service: TheService, _owner: Caller) -> Json:
    """Return the current log level of the service's processes."""
    return {"level": read_level(service.settings.data_dir) or service.settings.log_level}


@router.post(
    "/log-level",
    tags=["service"],
    summary="Set the log level",
    responses={**answer(LOG_LEVEL), **documented(401, 403)},
)
def set_log_level(
    service: TheService,
    _allowed: Administrator,
    level: Literal["debug", "info", "warning", "error"] | None = None,
) -> Json:
    """Set the log level of every process that shares the data folder, within about two seconds.

    The level holds until the service restarts. Without `level`, the level at start is restored.
    """
    write_level(service.settings.data_dir, level)
    return {"level": level or service.settings.log_level}


@router.get(
    "/models",
    tags=["service"],
    summary="Models and their rules",
    responses={**answer(MODELS), **documented(401)},
)
def models(service: TheService, _owner: Caller) -> Json:
    """Return the models; the first one is the default.

    `storage` tells the size of each and whether it is on this machine; the hub is not asked for that.
    `fits_here` tells how its default video fits the workers' devices with everything else gone from them; it
    is null before a device has reported.
    """
    default = next(iter(service.models))
    faults = service.faults.permanent()
    cards = service.cards.all()
    return {
        "models": [
            model_view(
                entry, is_default=name == default, unavailable_because=faults.get(name), **cards.get(name, {})
            )
            for name, entry in service.models.items()
        ]
    }


@router.get(
    "/healthz",
    tags=["service"],
    summary="Liveness of the API process",
    responses={
        **answer(HEALTH),
        503: {
            "description": "A loop of the process is silent, or nothing can be stored.",
            "content": {"application/json": {"schema": HEALTH}},
        },
    },
)
async def healthz(service: TheService) -> JSONResponse:
    """Return 200 while the process does its work, else 503.

    Both come with the process's loops and the time since each last succeeded. This waits for no database and
    no thread.
    """
    ok, report = service.health()
    return JSONResponse(report, 200 if ok else 503)


@router.get(
    "/readyz",
    tags=["service"],
    summary="Readiness to run jobs",
    responses={
        **answer(READINESS),
        503: {
            "description": "No live worker has a model that can be used, or nothing can be stored.",
            "content": {"application/json": {"schema": READINESS}},
        },
        **documented(401),
    },
)
async def readyz(service: TheService, _allowed: Monitor) -> JSONResponse:
    """Return 200 if jobs can be stored and a live worker offers a model that can be used, else 503.

    Both come with devices, job counts, the models, why some of them cannot be used, and the process's loops.
    Needs a key only if FRAMEFIT_OPEN_MONITORING is false.
    """
    ready, report = await service.shares.readiness.get(partial(readiness, service))
    return JSONResponse(report, 200 if ready else 503, headers={} if ready else {"Retry-After": "2"})


@router.get(
    "/metrics",
    tags=["service"],
    summary="Prometheus metrics",
    response_class=PlainTextResponse,
    responses={
        200: {
            "content": {
                each.value: {"schema": {"type": "string", "description": "Metrics, one sample a line."}}
                for each in Exposition
            }
        },
        **documented(401, 503),
    },
)
async def metrics(request: Request, service: TheService, _allowed: Monitor) -> Response:
    """Return the metrics in Prometheus's text format, or in OpenMetrics if the header Accept prefers it.

    OpenMetrics has exemplars: the id of the last job beside what it counted. Of several API processes that
    share a database, one exports the counters and the gauges of the job table (its `framefit_exporter` is 1),
    so that sums over the processes are right. A starting process shows no counters while it still counts past
    events (`framefit_starting` is 1), because Prometheus would take them for new ones. Needs a key only if
    FRAMEFIT_OPEN_MONITORING is false.
    """
    wanted = asked_for(request.headers.get("accept", ""))

    def render() -> bytes:
        counters, starting = service.exporter.shown()
        return service.metrics.render(counters=counters, starting=starting, encode=wanted.write)

    text = await service.shares.exposition[wanted].get(render)
    return Response(text, headers={"Content-Type": wanted.content_type, "Vary": "Accept"})
