"""Routes for a job's files: video, images, thumbnail and previews. Its frames:
`app.api.routes.results.frames`."""

from pathlib import Path as FilePath
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Header, Path, Query
from fastapi.responses import FileResponse, Response

from app.api.access import Caller
from app.api.dependencies import Service, TheService, visible
from app.api.problems import Problem, documented
from app.api.routes.results.converted import MEDIA, converted_response, known_format
from app.api.views import has_video
from app.artifacts.local_folder import job_artifacts
from app.fields.keyframes import MOST_KEYFRAMES
from app.jobs import Job
from app.media.shown import for_browsers, media_type
from app.store import ResultExpired

router = APIRouter(tags=["jobs"])
Original = Annotated[bool, Query(description="The uploaded file, whatever its format.")]
Format = Annotated[
    str,
    Query(alias="format", description="mp4, webm (VP9, Opus), gif, webp or png.zip. Default: mp4."),
]
# Documented for clients; `app.api.middleware.http_rules` answers it, for every route.
IfNoneMatch = Annotated[str | None, Header(alias="if-none-match")]


async def _of_the_page(
    _made: Annotated[str | None, Query(alias="made", include_in_schema=False)] = None,
    _attempt: Annotated[str | None, Query(alias="attempt", include_in_schema=False)] = None,
) -> None:
    """Allow the page's own parameters: a file that was made again gets another address."""


MADE_AGAIN = [Depends(_of_the_page)]


@router.get(
    "/jobs/{job_id}/video",
    summary="The finished video",
    response_class=FileResponse,
    responses={
        200: {"content": MEDIA, "description": "The video. Range requests are supported."},
        206: {"content": MEDIA, "description": "Part of the video."},
        304: {"description": "Unchanged: the given ETag still matches."},
        416: {"description": "The range is outside the file."},
        **documented(401, 404, 409, 410, 507),
    },
    dependencies=MADE_AGAIN,
)
def get_video(
    job_id: str,
    service: TheService,
    owner: Caller,
    wanted: Format = "mp4",
    _if_none_match: IfNoneMatch = None,
) -> Response:
    """Return the job's video as mp4, or in another format.

    WebM, GIF, WebP and an archive of PNG files are made of the mp4 when they are asked for the first time, so
    they have lost what its coding has: the header `Framefit-Pixels` is `lossy`.
    """
    job = visible(service, job_id, owner)
    if wanted == "mp4":
        return _video_response(service, job)
    other = known_format(wanted)
    require_video(job)
    return converted_response(service, job, other)


def require_video(job: Job) -> None:
    """Raise `Problem` if the job has no video that could be served."""
    if job.expired:
        raise Problem(410, "result_expired", "the video has expired and was deleted")
    if not has_video(job):
        retry = {} if job.status.is_terminal else {"Retry-After": "5"}
        message = f"job {job.id} is {job.status} and has no video"
        raise Problem(409, "no_video", message, headers=retry, data={"job_status": job.status})


def _video_response(service: Service, job: Job) -> FileResponse:
    require_video(job)
    path = job_artifacts(service.settings.jobs_dir, job.id).video
    try:
        found = path.stat()
    except FileNotFoundError:
        raise Problem(410, "result_missing", "the video's file is missing from the data folder") from None
    headers = {"Cache-Control": "private, no-cache", "ETag": f'"{found.st_mtime_ns:x}-{found.st_size:x}"'}
    return FileResponse(
        path,
        media_type="video/mp4",
        filename=f"{job.id}.mp4",
        content_disposition_type="inline",
        stat_result=found,
        headers=headers,
    )


@router.delete(
    "/jobs/{job_id}/video",
    status_code=204,
    summary="Delete a result",
    responses=documented(401, 404, 409, 410),
)
def delete_video(job_id: str, service: TheService, owner: Caller) -> None:
    """Delete the video, latents and images of an ended job. The job itself stays and is marked as expired.

    `POST /jobs/{id}/delete` deletes all of a job.
    """
    job = visible(service, job_id, owner)
    if not job.status.is_terminal:
        raise Problem(409, "wrong_state", f"job {job_id} is {job.status}: cancel it first")
    service.store.discard(job_id)


@router.get(
    "/jobs/{job_id}/image",
    summary="The first image of a job",
    response_class=Response,
    responses={200: {"content": {"image/*": {}}}, **documented(401, 404, 410)},
)
def get_image(job_id: str, service: TheService, owner: Caller, original: Original = False) -> Response:
    """Return the image as it was uploaded.

    HEIC and TIFF, which browsers do not show, come as a JPEG of at most 1,024 pixels a side. `original=true`
    gives the uploaded file.
    """
    require_unexpired(visible(service, job_id, owner))
    return _image_response(service, service.store.image(job_id), original)


@router.get(
    "/jobs/{job_id}/last_image",
    summary="The last image of a job",
    response_class=Response,
    responses={200: {"content": {"image/*": {}}}, **documented(401, 404, 410)},
)
def get_last_image(job_id: str, service: TheService, owner: Caller, original: Original = False) -> Response:
    """Return the last image, as GET /jobs/{id}/image does the first."""
    require_unexpired(visible(service, job_id, owner))
    data = service.store.last_image(job_id)
    if data is None:
        raise Problem(404, "no_last_image", f"job {job_id} has no last image")
    return _image_response(service, data, original)


@router.get(
    "/jobs/{job_id}/keyframes/{number}",
    summary="The picture of a key frame of a job",
    response_class=Response,
    responses={200: {"content": {"image/*": {}}}, **documented(401, 404, 410, 422)},
)
def get_keyframe(
    job_id: str,
    number: Annotated[int, Path(ge=0, lt=MOST_KEYFRAMES)],
    service: TheService,
    owner: Caller,
    original: Original = False,
) -> Response:
    """Return the picture of the request's `keyframes[number]`, as GET /jobs/{id}/image does the first."""
    require_unexpired(visible(service, job_id, owner))
    data = service.store.keyframe(job_id, number)
    if data is None:
        raise Problem(404, "no_keyframe", f"job {job_id} has no key frame {number}")
    return _image_response(service, data, original)


def require_unexpired(job: Job) -> None:
    """Raise `ResultExpired` if the job's images were deleted or soon are."""
    if job.expired:
        raise ResultExpired(job.id)


def _image_response(service: Service, data: bytes, original: bool) -> Response:
    shown, kind = (
        (data, media_type(data))
        if original
        else for_browsers(data, service.image_limits, service.shares.large_pictures.hold)
    )
    return Response(shown, media_type=kind, headers={"Cache-Control": "private, max-age=86400, immutable"})


JPEG: dict[int | str, dict[str, Any]] = {200: {"content": {"image/jpeg": {}}}}


@router.get(
    "/jobs/{job_id}/thumbnail",
    summary="A thumbnail of the finished video",
    response_class=FileResponse,
    responses={**JPEG, **documented(401, 404, 410)},
    dependencies=MADE_AGAIN,
)
def get_thumbnail(job_id: str, service: TheService, owner: Caller) -> Response:
    """Return the video's first frame as a small JPEG."""
    job = visible(service, job_id, owner)
    return picture_response(job, job_artifacts(service.settings.jobs_dir, job.id).thumbnail)


@router.get(
    "/jobs/{job_id}/previews/{number}.jpg",
    summary="A preview of one frame, made before the video is ready",
    response_class=FileResponse,
    responses={**JPEG, **documented(401, 404, 410, 422)},
    dependencies=MADE_AGAIN,
)
def get_preview(
    job_id: str, number: Annotated[int, Path(ge=0, le=99)], service: TheService, owner: Caller
) -> Response:
    """Return a small preview of one frame. While the job is denoised it is replaced as the video forms."""
    job = visible(service, job_id, owner)
    return picture_response(job, job_artifacts(service.settings.jobs_dir, job.id).preview(number))


def picture_response(job: Job, path: FilePath, media_type: str = "image/jpeg") -> FileResponse:
    """Return a picture of the job. Raises `Problem` if there is none."""
    if job.expired:
        raise Problem(410, "result_expired", "the video has expired, and its pictures were deleted")
    if not path.is_file():
        raise Problem(404, "no_picture", f"job {job.id} has no such preview, thumbnail or frame")
    return FileResponse(path, media_type=media_type, headers={"Cache-Control": "private, no-cache"})
