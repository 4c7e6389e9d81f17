"""Completes a request that continues an earlier job's video: its last frame becomes the first image.

The frame is copied into the new job, so the earlier job may be deleted afterwards. A request that is then
repeated under its idempotency key is completed from the job that it made.
"""

from collections.abc import Mapping
from typing import Any

from app.api.dependencies import Service, visible
from app.api.problems import Problem
from app.api.requests.bodies import Parts
from app.artifacts.local_folder import job_artifacts
from app.jobs import Job
from app.store import JobDeleted, NoSuchJob, ResultExpired

# A continuation looks like what it continues, as far as its model can: so the two can follow each other.
_OF_THE_SAME_MODEL = ("width", "height", "fps")
_SIZES = ("width", "height", "size")


def continued(service: Service, parts: Parts, owner: str | None, idempotency_key: str | None = None) -> Parts:
    """Return the parts with the last frame of the job that `continue_from` names, and with its values.

    Parts without `continue_from` are returned unchanged. Raises `NoSuchJob`, also for a job of another key,
    `JobDeleted`, `ResultExpired`, and `Problem` if the job has no last frame, unless the request repeats one.
    """
    job_id = parts.fields.get("continue_from")
    if job_id in (None, ""):
        return parts
    if "image" in parts.images:
        message = "the first image is the last frame of continue_from: give one of them"
        raise Problem(422, "contradicting_inputs", message, data={"field": "continue_from"})
    job, frame = _source(service, str(job_id), owner, idempotency_key)
    fields = {**parts.fields, **_values_of(service, job, parts.fields), "continue_from": str(job_id)}
    return Parts(fields, {**parts.images, "image": frame})


def with_values_taken_over(
    service: Service, fields: Mapping[str, Any], owner: str | None, idempotency_key: str | None
) -> dict[str, Any]:
    """Return the fields with the values of the job that they continue, as `continued` does later.

    For requests in which other fields depend on these, such as a duration on the frame rate.
    """
    job_id = fields.get("continue_from")
    if job_id in (None, ""):
        return dict(fields)
    job, _ = _source(service, str(job_id), owner, idempotency_key)
    return {**fields, **_values_of(service, job, fields)}


def _source(
    service: Service, job_id: str, owner: str | None, idempotency_key: str | None
) -> tuple[Job, bytes]:
    """Return the job to continue and its last frame; in its place, the job that the request repeats, and the
    frame that was copied into that one. Both have the same values.
    """
    try:
        job = visible(service, job_id, owner)
        return job, _last_frame(service, job)
    except (NoSuchJob, JobDeleted, ResultExpired, Problem):
        repeated = None if idempotency_key is None else service.store.repeated_job(owner, idempotency_key)
        if repeated is None or repeated.spec.continue_from != job_id or repeated.expired:
            raise
        return repeated, service.store.image(repeated.id)


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
