"""Routes about jobs that exist: list, look, follow, fetch, cancel."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path as FilePath
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Header, Path, Query, Request
from fastapi.responses import FileResponse, Response
from fastapi.sse import EventSourceResponse, ServerSentEvent
from pydantic import AwareDatetime

from app.api.access import Caller
from app.api.answers import JOB, answer
from app.api.answers import PAGE as PAGE_OF_JOBS
from app.api.problems import Problem, documented
from app.api.service import Service, TheService, visible
from app.api.submit import view
from app.api.views import event_view, has_video
from app.artifacts.local_folder import job_artifacts
from app.jobs import Event, Job, JobStatus, Json
from app.store import NoSuchJob

router = APIRouter(tags=["jobs"])
PAGE = 1000
# What neither database chokes on.
PLAIN = r"^[^\x00]*$"


@router.get(
    "/jobs", summary="List jobs, newest first", responses={**answer(PAGE_OF_JOBS), **documented(401, 422)}
)
def list_jobs(
    service: TheService,
    owner: Caller,
    status: JobStatus | None = None,
    model: Annotated[str | None, Query(max_length=100, pattern=PLAIN)] = None,
    since: Annotated[
        AwareDatetime | None, Query(description="Only jobs that came in at or after this time (RFC 3339).")
    ] = None,
    cursor: Annotated[
        str | None, Query(max_length=64, pattern=PLAIN, description="next_cursor of the page before.")
    ] = None,
    limit: Annotated[int, Query(ge=1, le=200)] = 50,
) -> Json:
    """One page; `next_cursor` is null on the last."""
    jobs = service.store.page(
        status=status,
        model=model,
        owner=owner,
        since=None if since is None else since.timestamp(),
        after=cursor,
        limit=limit + 1,
    )
    page = jobs[:limit]
    return {
        "jobs": [view(service, job, owner) for job in page],
        "next_cursor": page[-1].id if len(jobs) > limit else None,
    }


@router.get("/jobs/{job_id}", summary="A job", responses={**answer(JOB), **documented(401, 404)})
def get_job(job_id: str, service: TheService, owner: Caller) -> Json:
    """The job as it stands now."""
    return view(service, visible(service, job_id, owner), owner)


@router.delete(
    "/jobs/{job_id}", summary="Cancel a job", responses={**answer(JOB), **documented(401, 404, 409)}
)
def cancel_job(job_id: str, service: TheService, owner: Caller) -> Json:
    """A queued job is canceled at once, a running one at its next step or chunk; an ended one answers 409."""
    visible(service, job_id, owner)
    return view(service, service.store.cancel(job_id), owner)


@router.get(
    "/jobs/{job_id}/video",
    summary="The finished video",
    response_class=FileResponse,
    responses={
        200: {"content": {"video/mp4": {}}, "description": "The video; ranges are served."},
        206: {"content": {"video/mp4": {}}, "description": "Part of the video."},
        304: {"description": "Unchanged since the ETag given."},
        416: {"description": "No such range."},
        **documented(401, 404, 409, 410),
    },
)
def get_video(
    job_id: str,
    service: TheService,
    owner: Caller,
    if_none_match: Annotated[str | None, Header()] = None,
) -> Response:
    """The job's video as mp4."""
    job = visible(service, job_id, owner)
    response = _video_response(service, job)
    etag = response.headers["etag"]
    if if_none_match is not None and etag in [
        tag.strip().removeprefix("W/") for tag in if_none_match.split(",")
    ]:
        return Response(status_code=304, headers={"ETag": etag, "Cache-Control": "private, no-cache"})
    return response


def _video_response(service: Service, job: Job) -> FileResponse:
    if job.expired:
        raise Problem(410, "result_expired", "the video was deleted when its time was over")
    path = job_artifacts(service.settings.jobs_dir, job.id).video
    if not has_video(job):
        retry = {} if job.status.is_terminal else {"Retry-After": "5"}
        message = f"job {job.id} is {job.status}; there is no video"
        raise Problem(409, "no_video", message, headers=retry, data={"job_status": job.status})
    try:
        found = path.stat()
    except FileNotFoundError:
        raise Problem(410, "result_missing", "the video is no longer on the disk") from None
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
    "/jobs/{job_id}/video", status_code=204, summary="Delete a result", responses=documented(401, 404, 409)
)
def delete_video(job_id: str, service: TheService, owner: Caller) -> None:
    """Delete the video, the latents and the image of an ended job now; the job itself stays, marked as
    expired.
    """
    job = visible(service, job_id, owner)
    if not job.status.is_terminal:
        raise Problem(409, "wrong_state", f"job {job_id} is {job.status}: cancel it first")
    service.store.discard(job_id)


@router.get(
    "/jobs/{job_id}/image",
    summary="The image a job starts from",
    response_class=Response,
    responses={200: {"content": {"image/*": {}}}, **documented(401, 404, 410)},
)
def get_image(job_id: str, service: TheService, owner: Caller) -> Response:
    """The image as it was sent."""
    visible(service, job_id, owner)
    return _image_response(service.store.image(job_id))


@router.get(
    "/jobs/{job_id}/last_image",
    summary="The image a job ends with",
    response_class=Response,
    responses={200: {"content": {"image/*": {}}}, **documented(401, 404)},
)
def get_last_image(job_id: str, service: TheService, owner: Caller) -> Response:
    """The image as it was sent."""
    visible(service, job_id, owner)
    data = service.store.last_image(job_id)
    if data is None:
        raise Problem(404, "no_last_image", f"job {job_id} has no last image")
    return _image_response(data)


def _image_response(data: bytes) -> Response:
    kind = "image/png" if data[:4] == b"\x89PNG" else "image/webp" if data[:4] == b"RIFF" else "image/jpeg"
    return Response(data, media_type=kind, headers={"Cache-Control": "private, max-age=86400, immutable"})


JPEG: dict[int | str, dict[str, Any]] = {200: {"content": {"image/jpeg": {}}}}


@router.get(
    "/jobs/{job_id}/thumbnail",
    summary="A picture of the finished video",
    response_class=FileResponse,
    responses={**JPEG, **documented(401, 404, 410)},
)
def get_thumbnail(job_id: str, service: TheService, owner: Caller) -> Response:
    """The video's first frame, small."""
    job = visible(service, job_id, owner)
    return _picture(job, job_artifacts(service.settings.jobs_dir, job.id).thumbnail)


@router.get(
    "/jobs/{job_id}/previews/{number}.jpg",
    summary="A picture of a frame, made before the video was decoded",
    response_class=FileResponse,
    responses={**JPEG, **documented(401, 404, 410, 422)},
)
def get_preview(
    job_id: str, number: Annotated[int, Path(ge=0, le=99)], service: TheService, owner: Caller
) -> Response:
    """About what the frame will be: decoded alone and small. No part of the video."""
    job = visible(service, job_id, owner)
    return _picture(job, job_artifacts(service.settings.jobs_dir, job.id).preview(number))


def _picture(job: Job, path: FilePath) -> FileResponse:
    if job.expired:
        raise Problem(410, "result_expired", "the pictures were deleted when the video's time was over")
    if not path.is_file():
        raise Problem(404, "no_picture", f"job {job.id} has no such picture")
    return FileResponse(path, media_type="image/jpeg", headers={"Cache-Control": "private, no-cache"})


class StreamEnded(Exception):
    """The client has seen everything: answered with 204, after which a browser does not ask again."""


def _followed(
    job_id: str,
    service: TheService,
    owner: Caller,
    last_event_id: Annotated[str | None, Header()] = None,
) -> tuple[Job, int]:
    job = visible(service, job_id, owner)
    seen = _sequence(last_event_id)
    if job.status.is_terminal and seen and not service.store.events_after(seen, 1, job_id):
        raise StreamEnded
    return job, seen


def _sequence(last_event_id: str | None) -> int:
    if not last_event_id:
        return 0
    if not last_event_id.isascii() or not last_event_id.isdigit() or len(last_event_id) > 18:
        raise Problem(422, "invalid_last_event_id", "Last-Event-ID must be the id of an event")
    return int(last_event_id)


@router.get(
    "/jobs/{job_id}/events",
    summary="Follow a job (server-sent events)",
    response_class=EventSourceResponse,
    responses={
        204: {"description": "Everything was seen and the job has ended."},
        **documented(401, 404, 422),
    },
)
async def follow_job(
    service: TheService, owner: Caller, followed: Annotated[tuple[Job, int], Depends(_followed)]
) -> AsyncIterator[ServerSentEvent]:
    """The job's history from its first event, or from the one after `Last-Event-ID`, then what happens, until
    it ends.

    Each message has the event's kind as its type and JSON data.
    """
    job, seen = followed
    async for event in _history_then_news(service, job.id, seen):
        yield ServerSentEvent(data=event_view(event, owner), event=event.kind, id=str(event.seq))
        if event.kind == "finished" and await asyncio.to_thread(_is_last, service, event):
            return


def _seen(service: TheService, last_event_id: Annotated[str | None, Header()] = None) -> int:
    # Before the stream begins: once it has, nothing can be refused any more.
    return _sequence(last_event_id) or service.store.last_event()


@router.get(
    "/events",
    summary="Follow every job (server-sent events)",
    response_class=EventSourceResponse,
    responses=documented(401, 422),
)
async def follow_all(
    service: TheService, owner: Caller, seen: Annotated[int, Depends(_seen)]
) -> AsyncIterator[ServerSentEvent]:
    """What happens to the caller's jobs from now on, or from the event after `Last-Event-ID`; it does not
    end.
    """
    mine: dict[str, bool] = {}
    async for event in _history_then_news(service, None, seen):
        if owner is not None and event.job_id not in mine:
            mine[event.job_id] = await asyncio.to_thread(_belongs, service, event.job_id, owner)
        if owner is None or mine[event.job_id]:
            yield ServerSentEvent(data=event_view(event, owner), event=event.kind, id=str(event.seq))


async def _history_then_news(service: Service, job_id: str | None, seen: int) -> AsyncIterator[Event]:
    async with service.feed.subscribe(job_id) as subscription:
        while page := await asyncio.to_thread(service.store.events_after, seen, PAGE, job_id):
            for event in page:
                seen = event.seq
                yield event
        while (event_or_end := await subscription.pending.get()) is not None:
            if event_or_end.seq > seen:
                seen = event_or_end.seq
                yield event_or_end


def _is_last(service: Service, event: Event) -> bool:
    """Whether a `finished` event really was the end: a job that was queued again has later ones."""
    return not service.store.events_after(event.seq, 1, event.job_id)


def _belongs(service: Service, job_id: str, owner: str) -> bool:
    try:
        return service.store.get(job_id).owner == owner
    except NoSuchJob:
        return False


def no_more_events(_request: Request, _error: Exception) -> Response:
    """The answer to a client that has seen everything."""
    return Response(status_code=204)
