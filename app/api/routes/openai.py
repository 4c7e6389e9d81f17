"""/v1/videos: the same jobs in the format of OpenAI's video API. A deleted video is not there any more.

These routes only translate. `seconds` and `size` become frames and pixels by the model's rules; every field
of POST /generate is accepted too.
"""

import logging
import re
from dataclasses import replace
from http import HTTPStatus
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query, Request
from fastapi.responses import FileResponse, Response

from app.api.access import Caller
from app.api.dependencies import Service, TheService, visible
from app.api.problems import Problem
from app.api.requests.bodies import Parts, parse_body
from app.api.requests.job_spec import entry_of
from app.api.requests.schemas import REMIX_BODY, VIDEO_BODY
from app.api.response_schemas import OPENAI_ERROR, VIDEO, VIDEO_DELETED, VIDEOS, answer
from app.api.routes.continuation import with_values_taken_over
from app.api.routes.jobs import NO_NUL
from app.api.routes.results.files import (
    IfNoneMatch,
    get_video,
    picture_response,
    require_unexpired,
    require_video,
)
from app.api.routes.submit import Body, IdempotencyKey, build_submission, submit, tell_accepted
from app.artifacts.local_folder import job_artifacts
from app.fields.keyframes import PICTURES, for_another_length
from app.frame_rate import frame_rate
from app.jobs import Job, JobStatus, Json
from app.media.spritesheet import SheetError
from app.models.entries import ModelEntry
from app.store import JobDeleted, NoSuchJob

log = logging.getLogger(__name__)
router = APIRouter(prefix="/v1/videos", tags=["openai"])
STATUS = {
    JobStatus.QUEUED: "queued",
    JobStatus.RUNNING: "in_progress",
    JobStatus.SUCCEEDED: "completed",
    JobStatus.FAILED: "failed",
    JobStatus.CANCELED: "failed",
}
SIZE = re.compile(r"([1-9][0-9]{0,4})x([1-9][0-9]{0,4})")
MAX_SECONDS = 3600.0
NOT_REMIXED = {"webhook_url", "continue_from", "keyframe_sizes"}
VARIANTS = ("video", "thumbnail", "spritesheet")


def errors(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Return the OpenAPI `responses` of a route whose errors have OpenAI's form."""
    content = {"application/json": {"schema": OPENAI_ERROR}}
    described = {status: HTTPStatus(status).phrase for status in (*statuses, 422, 429, 503)}
    return {status: {"description": phrase, "content": content} for status, phrase in described.items()}


def video_view(job: Job) -> Json:
    """Return the JSON of a job in OpenAI's format."""
    spec = job.spec
    error = job.error and {"code": job.error["code"], "message": job.error["message"]}
    if job.status is JobStatus.CANCELED:
        error = {"code": "canceled", "message": "the job was canceled"}
    if job.expired:
        error = {"code": "result_expired", "message": "the video has expired and was deleted"}
    return {
        "id": job.id,
        "object": "video",
        "model": spec.model,
        "status": STATUS[job.status],
        "progress": int(100 * job.progress),
        "created_at": int(job.created_at),
        "completed_at": int(job.finished_at)
        if job.finished_at and job.status is JobStatus.SUCCEEDED
        else None,
        "expires_at": int(job.expires_at) if job.expires_at else None,
        "seconds": f"{float(spec.video_frames / spec.fps):.4g}",
        "size": f"{spec.width}x{spec.height}",
        "prompt": spec.prompt,
        "remixed_from_video_id": job.remixed_from,
        "error": error,
        "expired": job.expired,
    }


@router.post(
    "",
    summary="Create a video",
    responses={**answer(VIDEO), **errors(400, 401, 404, 408, 409, 410, 413, 415, 422, 429, 503, 507)},
    openapi_extra=VIDEO_BODY,
)
def create(
    request: Request, service: TheService, owner: Caller, body: Body, idempotency_key: IdempotencyKey = None
) -> Json:
    """Queue a video from `prompt` and the image in `input_reference`."""
    image_fields = ("input_reference", "last_image", *PICTURES)
    parts = parse_body(request.headers.get("content-type", ""), body, image_fields)
    fields = with_values_taken_over(service, parts.fields, owner, idempotency_key)
    parts.fields = _translated(service, fields)
    if (image := parts.images.pop("input_reference", None)) is not None:
        parts.images["image"] = image
    job, _ = submit(service, parts, owner=owner, idempotency_key=idempotency_key)
    return video_view(job)


@router.post(
    "/{video_id}/remix",
    summary="Make a video again with another prompt",
    responses={**answer(VIDEO), **errors(400, 401, 404, 408, 410, 413, 415, 422, 429, 503, 507)},
    openapi_extra=REMIX_BODY,
)
def remix(
    video_id: str,
    request: Request,
    service: TheService,
    owner: Caller,
    body: Body,
    idempotency_key: IdempotencyKey = None,
) -> Json:
    """Queue a video from the image and the fields of an earlier one, its seed too, with a new `prompt`.

    Fields that are given replace those of the earlier video. Its webhook is not taken over.
    """
    source = _there(service, video_id, owner)
    require_unexpired(source)
    given = parse_body(request.headers.get("content-type", ""), body, ()).fields
    if given.get("prompt") is None:
        raise Problem(422, "missing_field", "prompt: a remix needs a new prompt")
    fields = source.spec.model_dump(mode="json", exclude_none=True, exclude=NOT_REMIXED)
    shape = {name: fields[name] for name in ("model", "fps")}
    keyframes = for_another_length(source.spec.keyframes, source.spec.num_frames)
    fields["keyframes"] = [each.model_dump() for each in keyframes]
    if given.get("size") == "auto":  # the shape follows the image, not the earlier video
        fields = {name: value for name, value in fields.items() if name not in ("width", "height")}
    fields |= _translated(service, {**shape, **given})
    images = {"image": service.store.image(source.id), "last_image": service.store.last_image(source.id)}
    images |= dict(zip(PICTURES, service.store.keyframes(source.id), strict=False))
    parts = Parts(fields, {name: data for name, data in images.items() if data is not None})
    submission = build_submission(service, parts, owner=owner, idempotency_key=idempotency_key)
    job, created = service.store.submit(replace(submission, remixed_from=source.id))
    if created:
        tell_accepted(service, job)
    return video_view(job)


def _there(service: Service, video_id: str, owner: str | None) -> Job:
    """Return the job of a video that was not deleted. Raises `NoSuchJob`, as OpenAI's API answers 404."""
    try:
        return visible(service, video_id, owner)
    except JobDeleted:
        raise NoSuchJob(video_id) from None


def _translated(service: Service, fields: dict[str, Any]) -> dict[str, Any]:
    given = dict(fields)
    entry = entry_of(given, service.models)
    size, seconds = given.pop("size", None), given.pop("seconds", None)
    if size not in (None, "", "auto"):  # without a size the shape follows the image
        _refuse_both(given, "size", "width", "height")
        match = SIZE.fullmatch(str(size))
        if match is None:
            raise Problem(
                422, "invalid_size", f"size must be auto or WIDTHxHEIGHT in pixels, not {str(size)[:50]!r}"
            )
        given |= {"width": int(match[1]), "height": int(match[2])}
    if seconds not in (None, ""):
        _refuse_both(given, "seconds", "num_frames")
        frames = _frames(seconds, given.get("fps") or entry.defaults.fps, entry)
        if frames is not None:
            given["num_frames"] = frames
    return given


def _refuse_both(given: dict[str, Any], name: str, *others: str) -> None:
    if any(other in given for other in others):
        raise Problem(422, f"invalid_{name}", f"give either {name} or {' and '.join(others)}, not both")


def _frames(seconds: object, fps: object, entry: ModelEntry) -> int | None:
    """Return the number of frames that the model can make and whose duration is nearest to `seconds`.

    None if `fps` is no rate: the check of the whole request refuses it.
    """
    try:
        duration = float(str(seconds))
    except ValueError:
        raise Problem(422, "invalid_seconds", "seconds must be a number") from None
    try:
        rate = frame_rate(fps)
    except ValueError:
        return None
    if not 0 < duration <= MAX_SECONDS:
        raise Problem(422, "invalid_seconds", f"seconds must be above 0 and at most {MAX_SECONDS:.0f}")
    first = int(entry.first_frame_alone)
    steps = round((duration * float(rate) - first) / entry.frames_step)
    return max(0 if first else 1, steps) * entry.frames_step + first


@router.get("", summary="List videos", responses={**answer(VIDEOS), **errors(401, 422)})
def list_videos(
    service: TheService,
    owner: Caller,
    after: Annotated[str | None, Query(max_length=64, pattern=NO_NUL)] = None,
    limit: Annotated[int, Query(ge=1, le=100)] = 20,
    order: Literal["asc", "desc"] = "desc",
) -> Json:
    """Return one page of videos, newest first unless `order` is asc."""
    jobs = service.store.page(
        owner=service.keys.scope(owner),
        after=after,
        limit=limit + 1,
        newest_first=order == "desc",
        with_deleted=False,
    )
    page = jobs[:limit]
    return {
        "object": "list",
        "data": [video_view(job) for job in page],
        "first_id": page[0].id if page else None,
        "last_id": page[-1].id if page else None,
        "has_more": len(jobs) > limit,
    }


@router.get("/{video_id}", summary="A video", responses={**answer(VIDEO), **errors(401, 404)})
def retrieve(video_id: str, service: TheService, owner: Caller) -> Json:
    """Return the video's current state."""
    return video_view(_there(service, video_id, owner))


@router.get(
    "/{video_id}/content",
    summary="The video's file, or pictures of it",
    response_class=FileResponse,
    responses={
        200: {"content": {"video/mp4": {}, "image/jpeg": {}}},
        **errors(401, 404, 409, 410, 422, 503),
    },
)
def content(
    video_id: str,
    service: TheService,
    owner: Caller,
    variant: str = "video",
    _if_none_match: IfNoneMatch = None,
) -> Response:
    """Return the finished video as mp4, its thumbnail, or a sheet of up to 16 pictures of it.

    The sheet is made when it is asked for the first time.
    """
    if variant not in VARIANTS:
        known = ", ".join(VARIANTS)
        raise Problem(422, "unknown_variant", f"there is no variant {variant[:50]!r}; use one of {known}")
    job = _there(service, video_id, owner)
    if variant == "video":
        return get_video(video_id, service, owner)
    require_video(job)
    files = job_artifacts(service.settings.jobs_dir, job.id)
    if variant == "thumbnail":
        return picture_response(job, files.thumbnail)
    try:
        with service.shares.sheets.hold():
            return picture_response(job, service.sheets.sheet(files.video, files.spritesheet))
    except SheetError as error:
        if error.busy:
            raise Problem(503, "busy", f"{error}: try again", headers={"Retry-After": "5"}) from error
        raise Problem(410, "result_missing", f"the video's file is missing or damaged: {error}") from error


@router.delete(
    "/{video_id}", summary="Delete a video", responses={**answer(VIDEO_DELETED), **errors(401, 404)}
)
def delete(video_id: str, service: TheService, owner: Caller) -> Json:
    """Delete the job as POST /jobs/{id}/delete does: its images, latents, video, prompts and history.

    It is gone from these routes at once. A job that has not ended is canceled.
    """
    _there(service, video_id, owner)
    service.store.delete(video_id)
    log.info("job_deleted job_id=%s", video_id)
    return {"id": video_id, "object": "video.deleted", "deleted": True}
