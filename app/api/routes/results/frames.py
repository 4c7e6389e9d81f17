"""Routes for single frames of a job's video."""

from typing import Annotated

from fastapi import APIRouter, Path, Query, Request
from fastapi.responses import FileResponse, JSONResponse, Response

from app.api.access import Caller
from app.api.dependencies import Prefix, Service, TheService, visible
from app.api.middleware.hosts import origin_refusal
from app.api.middleware.http_rules import IS_HEAD
from app.api.problems import Problem, documented
from app.api.response_schemas import JOB, answer
from app.api.routes.again import queue_again
from app.api.routes.results.converted import DECODED, LOSSY, PIXELS
from app.api.routes.results.files import MADE_AGAIN, IfNoneMatch, picture_response, require_video
from app.api.routes.submit import view
from app.artifacts import local_folder
from app.artifacts.local_folder import JobArtifacts, TooManyFramesAsked, job_artifacts
from app.jobs import Job, JobStatus
from app.store import WrongState

router = APIRouter(tags=["jobs"])
RETRY_SECONDS = 2
Which = Annotated[
    str,
    Path(
        pattern=r"^(first|last|-?[0-9]{1,6})$",
        description="`first`, `last`, or a number from 0; a negative one counts from the end.",
    ),
]
Exact = Annotated[
    bool,
    Query(
        description="The pixels that the VAE decodes, not those of the mp4. If they are not stored, the "
        "job's latents are decoded again: 202 until the frame is there."
    ),
]


@router.get(
    "/jobs/{job_id}/frames/{which}.png",
    summary="A frame of the finished video",
    response_class=FileResponse,
    responses={
        200: {"content": {"image/png": {}}},
        **answer(JOB, 202),
        **documented(401, 403, 404, 409, 410, 422, 507),
    },
    dependencies=MADE_AGAIN,
)
def get_frame(
    job_id: str,
    which: Which,
    request: Request,
    service: TheService,
    owner: Caller,
    prefix: Prefix,
    exact: Exact = False,
    _if_none_match: IfNoneMatch = None,
) -> Response:
    """Return a frame as PNG.

    `first` and `last` are the pixels that the VAE decoded, without the loss of a video's coding: the header
    `Framefit-Pixels` is `decoded`. A frame by its number is read back from the mp4: `lossy`. With `exact=1`
    it is `decoded`, too: the answer is 202 and the job while its latents are decoded again for it, then the
    frame. HEAD queues nothing.
    """
    job = visible(service, job_id, owner)
    files = job_artifacts(service.settings.jobs_dir, job.id)
    if which in ("first", "last"):
        return _stored(picture_response(job, files.frame(which), "image/png"))
    require_video(job)
    if not exact:
        return _lossy(service, job, int(which))
    stored = _stored_exact(job, files, int(which))
    if stored is not None:
        return stored
    if request.scope.get(IS_HEAD, False):
        _require_latents(job, files)
    else:
        # It queues work. Only browsers that tell the page's site are refused: see `app.api.middleware.hosts`.
        refusal = origin_refusal({**request.scope, "method": "POST"})
        if refusal is not None:
            raise refusal
        job = _asked(service, job, files, int(which) % _frames_of(job))
    return JSONResponse(view(service, job, job.owner, prefix), 202, {"Retry-After": str(RETRY_SECONDS)})


def _stored(found: Response) -> Response:
    found.headers[PIXELS] = DECODED
    return found


def _frames_of(job: Job) -> int:
    return int((job.result or {})["frames"])


def _stored_exact(job: Job, files: JobArtifacts, number: int) -> Response | None:
    """Return the frame as the VAE decoded it, if that is stored.

    While the job waits for a decode, that is the frame of the video that it still has.
    """
    frames = _frames_of(job)
    wanted = number + frames if number < 0 else number
    if not 0 <= wanted < frames:
        raise _no_such_frame(number, frames)
    if not job.status.is_terminal and job.status is not JobStatus.QUEUED:
        return None
    ends = {0: files.frame("first"), frames - 1: files.frame("last")}
    for path in (files.exact_frame(wanted), ends.get(wanted)):
        if path is None:
            continue
        try:
            found = path.stat()
            content = path.read_bytes()
        except FileNotFoundError:  # not written, or a decode begins just now
            continue
        etag = f'"{found.st_mtime_ns:x}-{found.st_size:x}"'
        headers = {"Cache-Control": "private, no-cache", "ETag": etag}
        return _stored(Response(content, media_type="image/png", headers=headers))
    return None


def _require_latents(job: Job, files: JobArtifacts) -> None:
    if job.latents_path is None or not files.latents.is_file():
        message = f"job {job.id} has no stored latents: only the frame of the mp4 can be had, without exact"
        raise Problem(409, "no_latents", message)


def _asked(service: Service, job: Job, files: JobArtifacts, number: int) -> Job:
    """Note that the frame is wanted, and queue the job again if it has ended; return it as it is then."""
    _require_latents(job, files)
    is_full = is_new = False
    try:
        is_new = files.ask_frame(number)
    except TooManyFramesAsked:
        is_full = True
    except OSError as error:
        raise Problem(410, "result_missing", "the job's folder is missing from the data folder") from error
    if job.status.is_terminal:
        try:
            job = _queued_again(service, job, is_new=is_new)
        except BaseException:
            if is_new:
                files.forget_frame(number)
            raise
    if is_full:
        limit = local_folder.MOST_ASKED_FRAMES
        message = f"{limit} frames of this job wait for its decode, which is the limit: ask again later"
        retry = {"Retry-After": str(RETRY_SECONDS)}
        raise Problem(409, "too_many_frames", message, headers=retry, data={"limit": limit})
    return job


def _queued_again(service: Service, job: Job, *, is_new: bool) -> Job:
    """Queue the ended job for the frames that are asked for. Raises `Problem` if that has failed."""
    if not is_new and job.status is not JobStatus.SUCCEEDED:
        message = (
            f"the decode that was to write the frame is {job.status}: see the job's error, then retry it"
        )
        raise Problem(409, "exact_frame_failed", message, data={"job_error": job.error})
    try:
        return queue_again(service, job, {}, "exact_frame")
    except WrongState:  # another request has queued it meanwhile
        return service.store.get(job.id)


def _lossy(service: Service, job: Job, number: int) -> Response:
    # They import PyAV, which the process starts without.
    from av import FFmpegError

    from app.media.formats.reading import NoSuchFrame
    from app.media.formats.writers import write_frame

    video = job_artifacts(service.settings.jobs_dir, job.id).video
    try:
        found = video.stat()
        with service.shares.frames.hold():
            content = write_frame(video, number)
    except NoSuchFrame as error:
        raise _no_such_frame(number, error.frames) from error
    except (OSError, ValueError, FFmpegError) as error:
        message = "the video's file is missing from the data folder or damaged"
        raise Problem(410, "result_missing", message) from error
    return Response(
        content,
        media_type="image/png",
        headers={
            "Cache-Control": "private, no-cache",
            "ETag": f'"{number}-{found.st_mtime_ns:x}-{found.st_size:x}"',
            "Content-Disposition": f'inline; filename="{job.id}-frame{number}.png"',
            PIXELS: LOSSY,
        },
    )


def _no_such_frame(number: int, frames: int) -> Problem:
    message = f"there is no frame {number}: the video has {frames} frames, 0 to {frames - 1}"
    return Problem(404, "no_such_frame", message, data={"frames": frames})
