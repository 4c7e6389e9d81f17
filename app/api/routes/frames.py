"""Routes for single frames of a job's video."""

from typing import Annotated

from fastapi import APIRouter, Path
from fastapi.responses import FileResponse, Response

from app.api.access import Caller
from app.api.dependencies import Service, TheService, visible
from app.api.problems import Problem, documented
from app.api.routes.converted import DECODED, LOSSY, PIXELS
from app.api.routes.files import MADE_AGAIN, IfNoneMatch, picture_response, require_video
from app.artifacts.local_folder import job_artifacts
from app.jobs import Job

router = APIRouter(tags=["jobs"])
Which = Annotated[
    str,
    Path(
        pattern=r"^(first|last|-?[0-9]{1,6})$",
        description="`first`, `last`, or a number from 0; a negative one counts from the end.",
    ),
]


@router.get(
    "/jobs/{job_id}/frames/{which}.png",
    summary="A frame of the finished video",
    response_class=FileResponse,
    responses={200: {"content": {"image/png": {}}}, **documented(401, 404, 409, 410, 422)},
    dependencies=MADE_AGAIN,
)
def get_frame(
    job_id: str, which: Which, service: TheService, owner: Caller, _if_none_match: IfNoneMatch = None
) -> Response:
    """Return a frame as PNG.

    `first` and `last` are the pixels that the VAE decoded, without the loss of a video's coding: the header
    `Framefit-Pixels` is `decoded`. A frame by its number is read back from the mp4: `lossy`.
    """
    job = visible(service, job_id, owner)
    files = job_artifacts(service.settings.jobs_dir, job.id)
    if which in ("first", "last"):
        answer = picture_response(job, files.frame(which), "image/png")
        answer.headers[PIXELS] = DECODED
        return answer
    require_video(job)
    return _lossy(service, job, int(which))


def _lossy(service: Service, job: Job, number: int) -> Response:
    # They import PyAV, which the process starts without.
    from app.media.formats.reading import NoSuchFrame, read_frame
    from app.media.formats.writers import png_of

    video = job_artifacts(service.settings.jobs_dir, job.id).video
    try:
        found = video.stat()
        with service.shares.frames.hold():
            content = png_of(read_frame(video, number))
    except NoSuchFrame as error:
        raise Problem(404, "no_such_frame", str(error), data={"frames": error.frames}) from error
    except (OSError, ValueError) as error:  # PyAV's errors derive from these
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
