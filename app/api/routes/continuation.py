"""Completes a request that continues an earlier job's video: its last frame becomes the first image.

The frame is copied into the new job, so the earlier job may be deleted afterwards.
"""

from collections.abc import Mapping
from typing import Any

from app.api.dependencies import Service, visible
from app.api.problems import Problem
from app.api.requests.bodies import Parts
from app.artifacts.local_folder import job_artifacts
from app.jobs import Job
from app.store import ResultExpired

# A continuation looks like what it continues, as far as its model can: so the two can follow each other.
_OF_THE_SAME_MODEL = ("width", "height", "fps")
_SIZES = ("width", "height", "size")


def continued(service: Service, parts: Parts, owner: str | None) -> Parts:
    """Return the parts with the last frame of the job that `continue_from` names, and with its values.

    Parts without `continue_from` are returned unchanged. Raises `NoSuchJob`, also for a job of another key,
    `JobDeleted`, `ResultExpired`, and `Problem` if the job has no last frame.
    """
    job_id = parts.fields.get("continue_from")
    if job_id in (None, ""):
        return parts
    if "image" in parts.images:
        message = "the first image is the last frame of continue_from: give one of them"
        raise Problem(422, "contradicting_inputs", message, data={"field": "continue_from"})
    job = visible(service, str(job_id), owner)
    frame = _last_frame(service, job)
    fields = {**parts.fields, **_values_of(service, job, parts.fields), "continue_from": job.id}
    return Parts(fields, {**parts.images, "image": frame})


def model_to_continue(service: Service, fields: Mapping[str, Any], owner: str | None) -> dict[str, Any]:
    """Return the fields with the model of the job that they continue, if they name none."""
    job_id = fields.get("continue_from")
    if job_id in (None, "") or fields.get("model"):
        return dict(fields)
    model = visible(service, str(job_id), owner).spec.model
    return {**fields, "model": model} if model in service.models else dict(fields)


def _last_frame(service: Service, job: Job) -> bytes:
    if job.expired:
        raise ResultExpired(job.id)
    has_frame = job.result is not None and job.result.get("last_frame")
    try:
        if has_frame:
            return job_artifacts(service.settings.jobs_dir, job.id).frame("last").read_bytes()
    except FileNotFoundError:
        pass
    message = f"job {job.id} is {job.status} and has no last frame to continue from"
    raise Problem(409, "no_last_frame", message, data={"job_status": job.status, "job_id": job.id})


def _values_of(service: Service, job: Job, given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values that the request takes over from the job where it gives none."""
    named = given.get("model")
    if job.spec.model not in service.models or named not in (None, "", job.spec.model):
        return {}
    values = job.spec.model_dump(mode="json", include={"model", *_OF_THE_SAME_MODEL})
    if any(given.get(name) not in (None, "") for name in _SIZES):
        values = {name: value for name, value in values.items() if name not in _SIZES}
    return {name: value for name, value in values.items() if given.get(name) in (None, "")}
