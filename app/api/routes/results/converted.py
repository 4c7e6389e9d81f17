"""Answers with a job's video in a format other than mp4, which is made of the mp4 when it is asked for."""

import shutil
from typing import Any

from fastapi.responses import FileResponse

from app.api.dependencies import Service
from app.api.fairness.usage import too_busy
from app.api.limits import RETRY_SECONDS, check_disk
from app.api.problems import Problem
from app.artifacts import converted_files
from app.artifacts.local_folder import JobArtifacts, job_artifacts
from app.jobs import Job
from app.media.formats.apart import (
    ConversionDiskFull,
    ConversionFailed,
    ConversionInterrupted,
    ConversionTooLarge,
)
from app.media.formats.made import is_made, make
from app.media.formats.table import FORMATS, VideoFormat

# What the pixels of an answer are: `decoded` as the VAE gave them, `lossy` read back from the coded video.
PIXELS = "Framefit-Pixels"
LOSSY, DECODED = "lossy", "decoded"
MEDIA: dict[str, Any] = {"video/mp4": {}, **{each.media_type: {} for each in FORMATS.values()}}


def known_format(name: str) -> VideoFormat:
    """Return the format of that name. Raises problem 422."""
    if name not in FORMATS:
        available = ["mp4", *FORMATS]
        message = f"there is no format {name[:50]!r}: use one of {', '.join(available)}"
        raise Problem(422, "unknown_format", message, data={"available": available})
    wanted = FORMATS[name]
    missing = wanted.missing()
    if missing is not None:
        message = f"this service cannot write {name}: its build of PyAV has no {missing}"
        raise Problem(422, "format_not_available", message, data={"missing": missing})
    return wanted


def converted_response(service: Service, job: Job, wanted: VideoFormat) -> FileResponse:
    """Return the video in that format; made now unless it was. `job` has a video."""
    files = job_artifacts(service.settings.jobs_dir, job.id)
    out = files.converted(wanted.name)
    try:
        if not is_made(files.video, out):
            # A client's own requests wait for each other, and others go first: see `Places`.
            with service.shares.conversions.hold():
                _make(service, files, wanted)
        found = converted_files.mark_used(out)
    except ConversionTooLarge as error:
        message = f"{wanted.name} cannot be made of this video here: {error}; download the mp4 and convert it"
        raise Problem(422, "conversion_too_large", message) from error
    except ConversionDiskFull as error:
        message = f"the service's disk has too little space: {error}: try later"
        raise Problem(507, "disk_full", message, headers={"Retry-After": str(RETRY_SECONDS)}) from error
    except ConversionInterrupted as error:
        raise too_busy(str(error)) from error
    except (ConversionFailed, OSError) as error:
        if isinstance(error, FileNotFoundError) and files.video.is_file():
            raise too_busy("the video is being replaced") from error
        message = "the video's file is missing from the data folder or damaged"
        raise Problem(410, "result_missing", message) from error
    headers = {
        "Cache-Control": "private, no-cache",
        "ETag": f'"{wanted.name}-{found.st_mtime_ns:x}-{found.st_size:x}"',
        PIXELS: LOSSY,
    }
    return FileResponse(
        out,
        media_type=wanted.media_type,
        filename=f"{job.id}.{wanted.name}",
        content_disposition_type="attachment" if wanted.media_type == "application/zip" else "inline",
        stat_result=found,
        headers=headers,
    )


def _make(service: Service, files: JobArtifacts, wanted: VideoFormat) -> None:
    check_disk(service)
    free = shutil.disk_usage(service.settings.jobs_dir).free - service.settings.min_free_disk_bytes
    make(wanted.name, files.video, files.converted(wanted.name), file_bytes=max(0, free))
    out = files.converted(wanted.name)
    converted_files.mark_used(out)
    converted_files.keep_within(service.settings.jobs_dir, converted_files.MOST_BYTES, keep=out)
