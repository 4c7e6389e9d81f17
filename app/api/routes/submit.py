"""Routes that submit and plan jobs: POST /generate, POST /plan."""

import logging
from collections.abc import AsyncIterator, Sequence
from dataclasses import asdict, replace
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Header, Request, Response
from fastapi.responses import JSONResponse

from app.api.access import Caller
from app.api.dependencies import Prefix, Service, TheService
from app.api.fairness.clients import current_client
from app.api.limits import admit, check_key_limits
from app.api.problems import Problem, documented
from app.api.requests.bodies import Parts, parse_body, read_body
from app.api.requests.fingerprints import former_fingerprint, request_fingerprint
from app.api.requests.frames import require_pictures
from app.api.requests.job_spec import job_spec
from app.api.requests.pictures import UploadedPictures
from app.api.requests.schemas import GENERATE_BODY, PLAN_BODY
from app.api.response_schemas import JOB, PLAN, answer
from app.api.routes.continuation import continued
from app.api.views import hide_other_owners, job_view, pictures_view, range_view
from app.artifacts.local_folder import job_artifacts
from app.fields.keyframes import PICTURES
from app.jobs import Job, JobSpec, Json, Stage
from app.models.loras.choice import chosen_files
from app.scheduling.plan_view import rungs_json
from app.scheduling.stage_times import Seconds
from app.service.webhooks import check_url
from app.store import IdempotencyConflict, Submission

log = logging.getLogger(__name__)
router = APIRouter()
IDEMPOTENCY_KEY_LENGTH = 200
HISTORY_LIMIT = 10_000
STAGES_WITH_PREVIEWS = frozenset({Stage.DENOISING, Stage.DECODING, Stage.ENCODING, Stage.FINISHED})


async def _body(request: Request, service: TheService) -> AsyncIterator[bytes]:
    # Only reading the body needs the event loop; the rest of the request runs in a thread.
    with service.shares.body_memory.share(current_client()) as share:
        yield await read_body(request, service.settings.max_body_bytes, share)


Body = Annotated[bytes, Depends(_body)]
IdempotencyKey = Annotated[str | None, Header(min_length=1, max_length=IDEMPOTENCY_KEY_LENGTH, pattern=r"\S")]


def view(service: Service, job: Job, owner: str | None, prefix: str) -> Json:
    """Return the job's JSON with its ETA, preview links and, if it waits for memory, what it waits for."""
    return views(service, [job], owner, prefix)[0]


def views(service: Service, jobs: Sequence[Job], owner: str | None, prefix: str) -> list[Json]:
    """As `view` of each job; what they have in common is read once."""
    etas = service.waiting_times.seconds_for_jobs(jobs)
    ranges = service.waiting_ranges.for_jobs(jobs)
    return [_view(service, *each, owner, prefix) for each in zip(jobs, etas, ranges, strict=True)]


def _view(
    service: Service,
    job: Job,
    eta_seconds: float | None,
    eta_range: Seconds | None,
    owner: str | None,
    prefix: str,
) -> Json:
    entry = service.models.get(job.spec.model)
    shown = job_view(job, entry, eta_seconds=eta_seconds, eta_range=eta_range, prefix=prefix)
    if job.stage in STAGES_WITH_PREVIEWS and not job.expired:
        previews = job_artifacts(service.settings.jobs_dir, job.id).previews()
        shown["links"]["previews"] = [
            f"{shown['links']['self']}/previews/{number}.jpg" for number in range(previews)
        ]
    key = service.keys.of_owner(job.owner)
    name = None if key is None else key.name
    return {**shown, "key_name": name, "waiting": _waiting(service, job, owner)}


def _waiting(service: Service, job: Job, owner: str | None) -> Json | None:
    """Return the bytes needed and free and the GPU's processes when the wait began; None if not waiting."""
    if job.stage is not Stage.WAITING_FOR_MEMORY:
        return None
    history = service.store.events_after(0, HISTORY_LIMIT, job.id)
    wait = next((event for event in reversed(history) if event.kind == "waiting_for_memory"), None)
    return None if wait is None else hide_other_owners(wait.data, service.keys.scope(owner))


@router.post(
    "/generate",
    status_code=202,
    tags=["jobs"],
    summary="Queue a video",
    responses={
        **answer(JOB, 202),
        **documented(400, 401, 404, 408, 409, 410, 413, 415, 422, 429, 503, 507),
    },
    openapi_extra=GENERATE_BODY,
)
def generate(
    request: Request,
    service: TheService,
    owner: Caller,
    prefix: Prefix,
    body: Body,
    idempotency_key: IdempotencyKey = None,
) -> Response:
    """Validate the request, plan it and store it durably. The response does not wait for the video."""
    parts = parse_body(request.headers.get("content-type", ""), body)
    job, created = submit(service, parts, owner=owner, idempotency_key=idempotency_key)
    replayed = {} if created else {"Idempotent-Replayed": "true"}
    headers = {"Location": f"{prefix}/jobs/{job.id}", **replayed}
    # Built here, because FastAPI would serialize and validate the document again.
    return JSONResponse(view(service, job, owner, prefix), 202, headers)


def submit(
    service: Service, parts: Parts, *, owner: str | None, idempotency_key: str | None
) -> tuple[Job, bool]:
    """Store a job from a request's parts; return it and whether it is new. Raises as `build_submission`."""
    submission = build_submission(service, parts, owner=owner, idempotency_key=idempotency_key)
    try:
        job, created = service.store.submit(submission)
    except IdempotencyConflict:
        earlier = former_fingerprint(service.models, parts.fields, submission)
        if earlier is None:
            raise
        job, created = service.store.submit(replace(submission, fingerprint=earlier))
    if created:
        tell_accepted(service, job)
    return job, created


def tell_accepted(service: Service, job: Job) -> None:
    """Log a new job with the name of its key, never the key itself."""
    key = service.keys.of_owner(job.owner)
    log.info(
        "job_accepted job_id=%s model=%s key=%s", job.id, job.spec.model, None if key is None else key.name
    )


def build_submission(
    service: Service, parts: Parts, *, owner: str | None, idempotency_key: str | None
) -> Submission:
    """Return the validated and planned submission of a request's parts.

    Raises only errors that `problem_of` maps to a problem.
    """
    parts = continued(service, parts, owner, idempotency_key)
    image, last_image = parts.images.get("image"), parts.images.get("last_image")
    pictures = UploadedPictures(parts.images, service.image_limits, service.shares.large_pictures.hold)
    spec = job_spec(
        parts.fields, service.models, has_last_image=last_image is not None, measure=pictures.size
    )
    if spec.webhook_url is not None:
        _check_webhook(service, spec.webhook_url)
    if image is None:
        raise Problem(422, "missing_image", "the request has no image: send it in the file field 'image'")
    require_pictures(spec, service.models[spec.model], pictures.given)
    spec = spec.model_copy(update={**pictures.measured(), **_lora_files(service, spec)})
    admitted = admit(service, owner, spec)
    keyframes = tuple(parts.images[name] for name in PICTURES if name in parts.images)
    return Submission(
        spec=spec,
        image=image,
        fingerprint=request_fingerprint(spec, parts.fields, image, last_image, keyframes),
        last_image=last_image,
        keyframes=keyframes,
        plan=admitted.verdict.plan,
        needed_bytes=admitted.verdict.needed_bytes,
        idempotency_key=idempotency_key,
        owner=owner,
        max_queued_of_owner=admitted.max_queued_of_owner,
        expected_seconds=service.waiting_times.seconds_of_run(spec.model, admitted.verdict.plan)
        if service.keys.are_shared
        else None,
    )


def _lora_files(service: Service, spec: JobSpec) -> dict[str, Any]:
    """Return the field with the files of the job's LoRAs, {} if it has none. Raises `LoraRefused`."""
    if not spec.loras:
        return {}
    entry = service.models[spec.model]
    return {"loras": chosen_files(spec.loras, entry, service.loras, service.models, service.settings)}


def _check_webhook(service: Service, url: str) -> None:
    if service.settings.webhook_secret is None:
        message = "webhooks are off: the operator has not set FRAMEFIT_WEBHOOK_SECRET, which signs them"
        raise Problem(422, "webhooks_off", message)
    check_url(url, allow_private=service.settings.webhook_allow_private)


@router.post(
    "/plan",
    tags=["planning"],
    summary="Plan a job without queueing it",
    responses={**answer(PLAN), **documented(400, 401, 404, 408, 409, 410, 413, 415, 422, 503)},
    openapi_extra=PLAN_BODY,
)
def plan(request: Request, service: TheService, owner: Caller, body: Body) -> Json:
    """Dry run of POST /generate: checks the video's fields and returns the plan and the memory of each decode
    option (rung). It needs no image and no prompt, and does not check the webhook.

    An image, or its size in `image_size`, gives the video its shape if the fields do not.
    """
    parts = parse_body(request.headers.get("content-type", ""), body)
    parts.fields["prompt"] = parts.fields.get("prompt") or "plan"
    parts = continued(service, parts, owner)
    pictures = UploadedPictures(parts.images, service.image_limits, service.shares.large_pictures.hold)
    spec = job_spec(
        parts.fields, service.models, has_last_image="last_image" in parts.images, measure=pictures.size
    )
    check_key_limits(service, owner, spec)
    spec = spec.model_copy(update={**pictures.measured(), **_lora_files(service, spec)})
    verdict = service.admission.admit(spec)
    largest = verdict.largest
    return {
        "model": spec.model,
        "plan": verdict.plan,
        "needed_bytes": verdict.needed_bytes,
        "rungs": rungs_json(verdict.rungs, verdict.plan),
        "largest": None if largest is None else asdict(largest),
        "eta_seconds": service.waiting_times.seconds_for_new_job(spec.model, verdict.plan),
        "eta_range": range_view(
            service.waiting_ranges.for_new_job(
                spec.model, spec.width, spec.height, spec.num_frames - spec.loop, spec.num_inference_steps
            )
        ),
        "request": spec.model_dump(mode="json", exclude={"prompt", "seed"}),
        "pictures": pictures_view(spec),
    }
