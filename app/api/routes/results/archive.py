"""GET /jobs/videos.zip: the videos of several jobs in one streamed file.

Videos are stored as they are: an mp4 does not get smaller. One file at a time is open, and nothing of the
archive is kept in memory. A video that vanishes while the archive is sent ends the connection: the client
sees an incomplete file, never an archive that lacks a video.
"""

import re
import zipfile
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

from fastapi import APIRouter, Query
from fastapi.responses import StreamingResponse

from app.api.access import Caller
from app.api.dependencies import Service, TheService, visible
from app.api.problems import Problem, documented
from app.api.routes.results.files import require_video
from app.artifacts.local_folder import job_artifacts
from app.jobs import Job

router = APIRouter(tags=["jobs"])
MOST_VIDEOS = 100
BLOCK_BYTES = 1 << 18
NAME_CHARACTERS = 40


class _Sink:
    """Takes what `zipfile` writes. It cannot seek, so that sizes follow each video."""

    def __init__(self) -> None:
        self._blocks: list[bytes] = []

    def write(self, block: bytes, /) -> int:
        self._blocks.append(bytes(block))
        return len(block)

    def flush(self) -> None:
        """Do nothing: nothing is buffered."""

    def close(self) -> None:
        """Do nothing."""

    def take(self) -> bytes:
        """Return what was written since the last call."""
        taken = b"".join(self._blocks)
        self._blocks.clear()
        return taken


@router.get(
    "/jobs/videos.zip",
    summary="The videos of several jobs",
    response_class=StreamingResponse,
    responses={
        200: {"content": {"application/zip": {}}, "description": "A zip file of mp4 files."},
        **documented(401, 404, 409, 410, 422),
    },
)
def get_videos(
    service: TheService,
    owner: Caller,
    ids: Annotated[
        str,
        Query(
            pattern=r"^[0-9a-z]{1,64}(,[0-9a-z]{1,64})*$",
            max_length=65 * MOST_VIDEOS,
            description=f"Ids of up to {MOST_VIDEOS} jobs, with commas between them.",
        ),
    ],
) -> StreamingResponse:
    """Return the videos in one zip file. A job without a video refuses them all, and is named."""
    wanted = list(dict.fromkeys(ids.split(",")))
    if len(wanted) > MOST_VIDEOS:
        raise Problem(
            422, "too_many_videos", f"{len(wanted)} videos were asked for: at most {MOST_VIDEOS} come at once"
        )
    jobs = [visible(service, job_id, owner) for job_id in wanted]
    for job in jobs:
        require_video(job)
        if not _path(service, job).is_file():
            message = f"the video's file of job {job.id} is missing from the data folder"
            raise Problem(410, "result_missing", message)
    return StreamingResponse(
        _archive(service, jobs),
        media_type="application/zip",
        headers={
            "Content-Disposition": 'attachment; filename="framefit-videos.zip"',
            "Cache-Control": "private, no-store",
        },
    )


def _path(service: Service, job: Job) -> Path:
    return job_artifacts(service.settings.jobs_dir, job.id).video


def _archive(service: Service, jobs: list[Job]) -> Iterator[bytes]:
    sink = _Sink()
    with zipfile.ZipFile(sink, "w", zipfile.ZIP_STORED) as archive:
        for job in jobs:
            path = _path(service, job)
            entry = zipfile.ZipInfo(name_of(job), datetime.fromtimestamp(job.created_at, UTC).timetuple()[:6])
            entry.external_attr = 0o644 << 16
            with path.open("rb") as video, archive.open(entry, "w", force_zip64=True) as part:
                while block := video.read(BLOCK_BYTES):
                    part.write(block)
                    yield sink.take()
    yield sink.take()


def name_of(job: Job) -> str:
    """Return the file's name: what the prompt begins with, in letters that every system takes, and the id."""
    words = re.sub(r"[^a-z0-9]+", "-", job.spec.prompt.lower())[:NAME_CHARACTERS].strip("-")
    return f"{words}-{job.id}.mp4" if words else f"{job.id}.mp4"
