"""Routes for existing jobs: list, get, cancel, delete."""

import logging
from enum import StrEnum
from typing import Annotated

from fastapi import APIRouter, Query, Response
from fastapi.responses import JSONResponse
from pydantic import AwareDatetime

from app.api.access import Caller
from app.api.dependencies import Prefix, TheService, visible
from app.api.problems import documented
from app.api.response_schemas import DELETED, JOB, answer
from app.api.response_schemas import PAGE as PAGE_OF_JOBS
from app.api.routes.again import require_resumable
from app.api.routes.submit import view, views
from app.jobs import JobStatus, Json

log = logging.getLogger(__name__)
router = APIRouter(tags=["jobs"])
# Neither database accepts NUL in a text.
NO_NUL = r"^[^\x00]*$"


class ListedStatus(StrEnum):
    """The jobs of a list by their status. `ended` stands for succeeded, failed and canceled."""

    QUEUED = "queued"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELED = "canceled"
    ENDED = "ended"


@router.get(
    "/jobs", summary="List jobs, newest first", responses={**answer(PAGE_OF_JOBS), **documented(401, 422)}
)
def list_jobs(
    service: TheService,
    owner: Caller,
    prefix: Prefix,
    q: Annotated[
        str | None,
        Query(
            max_length=200,
            pattern=NO_NUL,
            description="Only jobs with each of these words in their prompt, model or id.",
        ),
    ] = None,
    status: ListedStatus | None = None,
    model: Annotated[str | None, Query(max_length=100, pattern=NO_NUL)] = None,
    since: Annotated[
        AwareDatetime | None, Query(description="Only jobs created at or after this time (RFC 3339).")
    ] = None,
    before: Annotated[
        AwareDatetime | None, Query(description="Only jobs created before this time (RFC 3339).")
    ] = None,
    cursor: Annotated[
        str | None, Query(max_length=64, pattern=NO_NUL, description="The next_cursor of the previous page.")
    ] = None,
    limit: Annotated[int, Query(ge=1, le=200)] = 50,
) -> Response:
    """Return one page of jobs; `next_cursor` is null on the last page.

    A page of a search (`q`, or `model` with an API key) may have fewer jobs than `limit`, or none, although
    `next_cursor` is not null: one request looks at 2,000 jobs at most.
    """
    ended = status is ListedStatus.ENDED
    jobs, next_cursor = service.store.search(
        words=(q or "").split(),
        status=None if status is None or ended else JobStatus(status),
        ended=ended,
        model=model,
        owner=service.keys.scope(owner),
        since=None if since is None else since.timestamp(),
        before=None if before is None else before.timestamp(),
        after=cursor,
        limit=limit,
    )
    document = {"jobs": views(service, jobs, owner, prefix), "next_cursor": next_cursor}
    # Built here, because FastAPI would convert each value again.
    return JSONResponse(document)


@router.get("/jobs/{job_id}", summary="A job", responses={**answer(JOB), **documented(401, 404, 410)})
def get_job(job_id: str, service: TheService, owner: Caller, prefix: Prefix) -> Json:
    """Return the job's current state."""
    return view(service, visible(service, job_id, owner), owner, prefix)


@router.delete(
    "/jobs/{job_id}", summary="Cancel a job", responses={**answer(JOB), **documented(401, 404, 409, 410)}
)
def cancel_job(job_id: str, service: TheService, owner: Caller, prefix: Prefix) -> Json:
    """Cancel a queued job at once, or a running one at its next step or chunk. An ended job gives 409."""
    visible(service, job_id, owner)
    return view(service, service.store.cancel(job_id), owner, prefix)


@router.post(
    "/jobs/{job_id}/finish-early",
    summary="End a job's denoise early and keep the video",
    responses={**answer(JOB), **documented(401, 404, 409, 410)},
)
def finish_early(job_id: str, service: TheService, owner: Caller, prefix: Prefix) -> Json:
    """Let the next step be the last one, and decode what it aims at. The job succeeds with that video.

    The job's `denoise` then has `stopped_at_step`. A job that is not being denoised, or is not `resumable`,
    gives 409. A request that comes before the last step changes nothing.
    """
    require_resumable(service, visible(service, job_id, owner), "finished early")
    return view(service, service.store.finish_early(job_id), owner, prefix)


@router.post(
    "/jobs/{job_id}/delete",
    status_code=202,
    summary="Delete a job",
    responses={**answer(DELETED, 202), **documented(401, 404, 410)},
)
def delete_job(job_id: str, service: TheService, owner: Caller) -> Json:
    """Delete the job with its images, latents, pictures, video, prompts and history. It cannot be undone.

    From now on nothing of the job is served: its routes give 410 `job_deleted`. A job that has not ended is
    canceled, and its data goes when it has stopped. What stays are the id, times and numbers.
    """
    visible(service, job_id, owner)
    service.store.delete(job_id)
    log.info("job_deleted job_id=%s", job_id)
    return {"id": job_id, "deleted": True}
