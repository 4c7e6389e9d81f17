"""The JSON of jobs, events, devices and models, as pure functions of the stored rows."""

from datetime import UTC, datetime

from app.attempts import Setbacks, description
from app.fields.keyframes import MOST_KEYFRAMES
from app.jobs import Event, Job, JobSpec, JobStatus, Json, Stage, WorkerRow, sides_of
from app.media.fit import frame
from app.media.formats.table import FORMATS
from app.models.entries import ModelEntry
from app.pipelines.frames import FORMS
from app.scheduling.stage_times import Seconds


def timestamp(seconds: float | None) -> str | None:
    """Return seconds since the epoch as an RFC 3339 time in UTC; None for None."""
    if seconds is None:
        return None
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def job_view(
    job: Job,
    entry: ModelEntry | None,
    *,
    eta_seconds: float | None = None,
    eta_range: Seconds | None = None,
    prefix: str = "",
) -> Json:
    """Return the JSON of a job; `entry` is its model, None if the model was removed.

    Links begin with `prefix`, the path under which a proxy serves the service.
    """
    base = f"{prefix}/jobs/{job.id}"
    links: Json = {"self": base, "events": f"{base}/events", "delete": f"{base}/delete"}
    if not job.expired:
        links["image"] = f"{base}/image"
    if job.has_last_image and not job.expired:
        links["last_image"] = f"{base}/last_image"
    if job.spec.keyframes and not job.expired:
        links["keyframes"] = [f"{base}/keyframes/{number}" for number in range(len(job.spec.keyframes))]
    in_place = None if entry is None else entry.not_resumable_because
    if job.status is JobStatus.RUNNING and job.stage is Stage.DENOISING and in_place is None:
        links["finish_early"] = f"{base}/finish-early"
    if has_video(job):
        links["video"] = f"{base}/video"
        links["formats"] = {name: f"{base}/video?format={name}" for name in FORMATS}
        if job.result and job.result.get("thumbnail"):
            links["thumbnail"] = f"{base}/thumbnail"
        for which in ("first", "last"):
            if job.result and job.result.get(f"{which}_frame"):
                links[f"{which}_frame"] = f"{base}/frames/{which}.png"
    if job.status.is_terminal and not job.expired and in_place is None:
        links["redecode"] = f"{base}/redecode"
    if job.status in (JobStatus.FAILED, JobStatus.CANCELED) and not job.expired:
        links["retry"] = f"{base}/retry"
    return {
        "id": job.id,
        "status": job.status,
        "stage": job.stage,
        "progress": round(job.progress, 4),
        "queue_position": job.queue_position,
        "eta_seconds": eta_seconds,
        "eta_range": range_view(eta_range),
        "cancel_requested": job.cancel_requested,
        "model": job.spec.model,
        # As text: JavaScript and others round numbers beyond 2**53, such as the one in `request`.
        "seed": str(job.spec.seed),
        "notice": entry.notice if entry else None,
        "resumable": in_place is None,
        "not_resumable_because": in_place,
        "request": job.spec.model_dump(mode="json"),
        "pictures": pictures_view(job.spec),
        "continued_from": job.spec.continue_from,
        "plan": job.plan,
        "download": job.download,
        "denoise": job.denoise,
        "decode": job.decode,
        "result": _result(job),
        "error": job.error,
        "webhook": webhook_view(job),
        "attempts": job.attempts,
        "preemptions": (job.preempted or {}).get("times", 0),
        "gave_way": _gave_way(job),
        "handed_over": _handed_over(job),
        "held_because": _held_because(job),
        "links": links,
        "created_at": timestamp(job.created_at),
        "started_at": timestamp(job.started_at),
        "finished_at": timestamp(job.finished_at),
        "expires_at": timestamp(job.expires_at),
        "expired": job.expired,
    }


def pictures_view(spec: JobSpec) -> Json:
    """Return how each image fills the video and what is cut off; None for one whose size is unknown.

    `keyframes` is there if there are any and their sizes are known.
    """

    def view(size: str | None) -> Json | None:
        if size is None:
            return None
        return frame(sides_of(size), (spec.width, spec.height), spec.fit, spec.gravity).as_json()

    views: Json = {"image": view(spec.image_size), "last_image": view(spec.last_image_size)}
    if spec.keyframe_sizes:
        views["keyframes"] = [view(size) for size in spec.keyframe_sizes]
    return views


def webhook_view(job: Job) -> Json | None:
    """Return how the newest delivery of the job's webhook goes; None for a job without one."""
    if job.spec.webhook_url is None:
        return None
    told = job.webhook or {}
    return {
        "state": told.get("state", "pending"),
        "attempts": told.get("attempts", 0),
        "last_error": told.get("last_error"),
        "next_attempt_at": timestamp(told.get("next_attempt_at")),
    }


def range_view(seconds: Seconds | None) -> Json | None:
    """Return the JSON of a range of seconds."""
    if seconds is None:
        return None
    return {"low_seconds": round(seconds.low, 1), "high_seconds": round(seconds.high, 1)}


def has_video(job: Job) -> bool:
    """Return whether a finished video can be downloaded; one from before a redecode counts."""
    return job.result is not None and not job.expired


def _handed_over(job: Job) -> Json | None:
    """Return which worker left the decode to which other one, and why; None for other jobs."""
    told = job.handover
    return None if told is None else {name: told.get(name) for name in ("from", "to", "reason")}


def _held_because(job: Job) -> str | None:
    """Return why a job waits behind the others, or runs once more after that; None for other jobs."""
    setbacks = Setbacks.of(job.setbacks)
    if not setbacks.held or job.status.is_terminal:
        return None
    return f"{description(setbacks)}; the job is tried once more, alone, when the others are done"


def _gave_way(job: Job) -> str | None:
    """Return why a queued job that has run before waits again, and what it keeps; None for other jobs."""
    if job.preempted is None or job.status is not JobStatus.QUEUED:
        return None
    return "gave way to a job of higher priority; {step} of {steps} steps are kept".format(**job.preempted)


# What only says that a picture is there, and shows in the links.
_LINKED = ("thumbnail", "first_frame", "last_frame")


def _result(job: Job) -> Json | None:
    if job.result is None:
        return None
    return {
        name: value
        for name, value in job.result.items()
        if not name.endswith("_path") and name not in _LINKED
    }


def event_view(event: Event, owner: str | None) -> Json:
    """Return the JSON of a streamed event."""
    data = hide_other_owners(event.data, owner)
    return {"job_id": event.job_id, "kind": event.kind, "at": timestamp(event.at), **data}


def hide_other_owners(report: Json, owner: str | None) -> Json:
    """Return the report without the names and process ids of other programs, unless `owner` is None."""
    if owner is None or "holders" not in report:
        return report
    holders = [{**each, **({} if each["own"] else {"pid": None, "name": None})} for each in report["holders"]]
    return {**report, "holders": holders}


def device_view(worker: WorkerRow, *, now: float, alive_seconds: float) -> Json:
    """Return the JSON of a worker and its device."""
    return {
        **worker.device,
        "worker_id": worker.id,
        "host": worker.host,
        "job_id": worker.job_id,
        "worker_state": _state(worker) if now - worker.heartbeat_at <= alive_seconds else "lost",
        "heartbeat_at": timestamp(worker.heartbeat_at),
    }


def ready_device_view(worker: WorkerRow) -> Json:
    """Return the short JSON of a device for /readyz."""
    device = worker.device
    return {
        "name": str(device.get("name", worker.id)),
        "kind": str(device.get("kind", "")),
        "state": _state(worker),
        "loaded_model": device.get("loaded_model"),
    }


def _state(worker: WorkerRow) -> str:
    """Return the worker's state; a paused device whose job still runs is `draining`."""
    return "draining" if worker.state == "paused" and worker.job_id is not None else worker.state


def model_view(
    entry: ModelEntry,
    *,
    is_default: bool,
    unavailable_because: str | None = None,
    storage: Json | None = None,
    fits_here: Json | None = None,
) -> Json:
    """Return the JSON of a model: its rules, defaults and limits, and why it cannot be used, if so.

    `storage` tells where its weights are and their size, `fits_here` what its default video needs.
    """
    return {
        "name": entry.name,
        "description": entry.description,
        "notice": entry.notice,
        "pipeline": entry.pipeline,
        "source": entry.source,
        "dtype": entry.dtype,
        "vae_dtype": entry.decode_dtype,
        "size_multiple": entry.size_multiple,
        "frame_rule": entry.frame_rule,
        "frames_step": entry.frames_step,
        "shapes": list(entry.shapes),
        "temporal_ratio": entry.temporal_ratio,
        "first_frame_alone": entry.first_frame_alone,
        "uses_prompt": entry.uses_prompt,
        "inputs": sorted(entry.inputs),
        "requires": sorted(entry.requires),
        "keyframes": _keyframes_view(entry),
        "defaults": entry.defaults.model_dump(exclude_none=True),
        "limits": entry.limits.model_dump(),
        "loras": entry.loras_json,
        "fixed": entry.fixed,
        "resumable": entry.not_resumable_because is None,
        "not_resumable_because": entry.not_resumable_because,
        "is_default": is_default,
        "available": unavailable_because is None,
        "unavailable_because": unavailable_because,
        "storage": storage,
        "fits_here": fits_here,
    }


def _keyframes_view(entry: ModelEntry) -> Json | None:
    """Return how many key frames a job of the model may have, and where; None if it takes none.

    They stand at the last frame, and where the frame's number less one is a multiple of `apart`.
    """
    if "keyframes" not in entry.inputs:
        return None
    form = FORMS[entry.pipeline]
    return {"most": MOST_KEYFRAMES, "apart": form.apart, "rule": form.rule}
