"""Turns errors into a job's failure, with a stable code for clients.

Owns which errors are the job's own and their codes. Every other error is the process's: it passes through and
ends the worker.
"""

import logging
from collections.abc import Iterator
from contextlib import contextmanager

from adaptive.errors import AdaptiveError, DecodeOutOfMemory, DoesNotFit, NonFiniteValues
from app.jobs import JobError, Json
from app.media.video import NO_SPACE, VideoWriteError
from app.models.components import ModelUnavailable
from app.models.downloads.planning import DownloadFailed
from app.pipelines.safety_checker import ContentRefused, NotChecked
from app.store import ImageMissing, ImageUnreadable, StoreError
from app.worker.device_errors import DeviceFault, OutOfMemory, device_fault
from app.worker.finite import found_json
from app.worker.job.control import Interrupted
from app.worker.loras.not_applied import LoraNotApplied
from app.worker.pipeline_call import UnsuitablePipeline

log = logging.getLogger(__name__)


class JobFailure(Exception):
    """The job cannot be done; the worker can run the next one. `error` is what the job table stores."""

    def __init__(self, code: str, message: str, data: Json | None = None) -> None:
        self.error = JobError(code, message, data)
        super().__init__(message)


@contextmanager
def device_faults_named() -> Iterator[None]:
    """Raise an error that a fault of the device has caused, or a device that is lost, as `DeviceFault`."""
    try:
        yield
    except DeviceFault:
        raise
    except Exception as error:
        fault = device_fault(error)
        if fault is None:
            raise
        raise DeviceFault(str(fault)) from error


@contextmanager
def as_job_failures() -> Iterator[None]:
    """Raise a job's own errors as `JobFailure`, and those of a broken device as `DeviceFault`, in any stage.

    Interrupts and store errors pass unchanged.
    """
    try:
        with device_faults_named():
            yield
    except ImageMissing as error:
        raise JobFailure("image_missing", str(error)) from error
    except ImageUnreadable as error:
        raise JobFailure("storage_failed", str(error)) from error
    except (Interrupted, JobFailure, StoreError, DeviceFault):
        raise
    except DoesNotFit as error:
        data = {"needed_bytes": error.needed_bytes, "budget_bytes": error.budget_bytes}
        raise JobFailure("does_not_fit", str(error), data) from error
    except DecodeOutOfMemory as error:
        raise JobFailure("out_of_memory", str(error), _fields(error)) from error
    except OutOfMemory as error:
        missing: Json = {"stage": error.stage, "free_bytes": error.free_bytes}
        if error.needed_bytes is not None:
            missing["needed_bytes"] = error.needed_bytes
        raise JobFailure("out_of_memory", str(error), missing) from error
    except NonFiniteValues as error:
        raise JobFailure("nonfinite_values", str(error), found_json(error)) from error
    except VideoWriteError as error:
        raise JobFailure("disk_full" if error.disk_full else "encoding_failed", str(error)) from error
    except DownloadFailed as error:
        raise JobFailure(error.code, str(error), dict(error.data)) from error
    except LoraNotApplied as error:
        raise JobFailure(error.code, str(error), error.data) from error
    except ContentRefused as error:
        raise JobFailure("content_refused", str(error)) from error
    except (ModelUnavailable, UnsuitablePipeline, AdaptiveError, NotChecked) as error:
        code = "model_unavailable" if isinstance(error, ModelUnavailable) else "unsupported"
        raise JobFailure(code, str(error)) from error
    except OSError as error:
        raise JobFailure("disk_full" if error.errno in NO_SPACE else "storage_failed", str(error)) from error
    except Exception as error:
        log.exception("job_crashed")
        raise JobFailure("internal_error", f"{type(error).__name__}: {error}") from error


# What `as_job_failures` has a code for, or lets through.
_EXPECTED = (
    *(Interrupted, JobFailure, StoreError, DeviceFault, OutOfMemory),
    *(VideoWriteError, ModelUnavailable, UnsuitablePipeline, AdaptiveError, OSError, LoraNotApplied),
    *(ContentRefused, NotChecked),
)


def is_unexpected(error: Exception) -> bool:
    """Whether the job would fail with `internal_error`: nothing is known about the error."""
    return not isinstance(error, _EXPECTED) and device_fault(error) is None


def _fields(error: DecodeOutOfMemory) -> Json:
    names = ("frames_per_chunk", "retries", "frames_done", "needed_bytes", "free_bytes")
    return {name: getattr(error, name) for name in names}
