"""Routes that run a job again: POST /jobs/{id}/redecode and /retry."""

from collections.abc import Mapping
from typing import Any

from fastapi import APIRouter

from app.api.access import Caller
from app.api.dependencies import Prefix, Service, TheService, visible
from app.api.limits import admit
from app.api.problems import Problem, documented
from app.api.requests.bodies import from_json
from app.api.requests.schemas import REDECODE_BODY, REDECODE_FIELDS
from app.api.response_schemas import JOB, answer
from app.api.routes.submit import Body, view
from app.jobs import Job, JobSpec, Json
from app.models.loras.choice import require_unchanged

router = APIRouter()
DECODE_FIELDS = frozenset(REDECODE_FIELDS)


@router.post(
    "/jobs/{job_id}/redecode",
    status_code=202,
    tags=["jobs"],
    summary="Decode an ended job again",
    responses={**answer(JOB, 202), **documented(400, 401, 404, 408, 409, 410, 413, 422, 429, 503, 507)},
    openapi_extra=REDECODE_BODY,
)
def redecode(job_id: str, service: TheService, owner: Caller, prefix: Prefix, body: Body) -> Json:
    """Queue an ended job again, optionally with other decode fields.

    The job reuses its latents if they are on disk. Otherwise it is denoised again, from its last checkpoint.
    A job that is not `resumable` keeps no latents and gives 409.
    """
    job = visible(service, job_id, owner)
    require_resumable(service, job, "decoded again")
    changes = from_json(body) if body.strip() else {}
    for name in changes.keys() - DECODE_FIELDS:
        raise Problem(
            422,
            "unknown_field",
            f"{name[:100]!r} cannot be changed; only {', '.join(sorted(DECODE_FIELDS))} can",
        )
    given = {"frames_per_chunk": None, **changes} if "decode_strategy" in changes else changes
    return view(service, queue_again(service, job, given, "redecode"), job.owner, prefix)


@router.post(
    "/jobs/{job_id}/retry",
    status_code=202,
    tags=["jobs"],
    summary="Run a failed or canceled job again",
    responses={**answer(JOB, 202), **documented(401, 404, 409, 410, 422, 429, 503, 507)},
)
def retry(job_id: str, service: TheService, owner: Caller, prefix: Prefix) -> Json:
    """Queue a failed or canceled job again unchanged, with its full number of attempts.

    The job resumes from its latents or its last step if they are on disk; one that is not `resumable` begins
    at its first step. A job that succeeded gives 409; use POST /jobs/{id}/redecode for it.
    """
    job = visible(service, job_id, owner)
    return view(service, queue_again(service, job, {}, "retry"), job.owner, prefix)


def require_resumable(service: Service, job: Job, what: str) -> None:
    """Raise the 409 `not_resumable` for a job whose pipeline decodes within its own call."""
    entry = service.models.get(job.spec.model)
    why = None if entry is None else entry.not_resumable_because
    if why is not None:
        message = f"the job cannot be {what}: {why}, and nothing of a run is kept"
        raise Problem(409, "not_resumable", message)


def queue_again(service: Service, job: Job, changes: Mapping[str, Any], why: str) -> Job:
    """Queue an ended job again with changed fields; it passes the limits that new work passes."""
    spec = JobSpec.model_validate({**job.spec.model_dump(), **changes})
    if job.latents_path is None:
        require_unchanged(spec.loras, service.loras)
    admitted = admit(service, job.owner, spec)
    changed = {name: getattr(spec, name) for name in changes}
    return service.store.queue_again(
        job.id,
        changes=changed,
        plan=admitted.verdict.plan,
        needed_bytes=admitted.verdict.needed_bytes,
        why=why,
        max_queued_of_owner=admitted.max_queued_of_owner,
    )
