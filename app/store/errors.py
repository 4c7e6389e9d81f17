"""The errors of the job store.

StoreError
├── NoSuchJob             no job has that id                        (job_id)
├── JobDeleted            the job was deleted; nothing of it is served (job)
├── StoreUnavailable      the database is locked, unreachable or out of disk space; nothing was written
│   ├── CannotOpen            a database that cannot be opened at the start       (place, reason)
│   ├── ImageUnreadable       an image is there, but it cannot be read  (job_id, reason)
│   └── DataFolderUnusable    the data folder or the database's file is gone, replaced or read-only  (path)
├── NewerSchema           a newer version of the program has upgraded the database  (revision)
├── DamagedSnapshot       the stored counters cannot be read
├── QueueFull             the limit of queued jobs is reached       (queued, limit, owner)
├── IdempotencyConflict   the key belongs to another request        (job_id)
├── WrongState            the job's status does not allow it        (job)
├── ImageMissing          a file of the job's images is gone or cut (job_id)
└── ResultExpired         the job's image and result were deleted   (job_id)
"""

from pathlib import Path

from app.jobs import Job


class StoreError(Exception):
    """Base of the job store's errors."""


class NoSuchJob(StoreError):
    """No job has that id."""

    def __init__(self, job_id: str) -> None:
        self.job_id = job_id
        super().__init__(f"there is no job {job_id!r}")


class JobDeleted(StoreError):
    """The job was deleted: nothing of it is served, and it cannot run again."""

    def __init__(self, job: Job) -> None:
        self.job = job
        super().__init__(
            f"job {job.id} was deleted: its image, prompt and video are gone, or go when it ends"
        )


class StoreUnavailable(StoreError):
    """The database is locked or unreachable, or its disk is full. Nothing was written."""


class CannotOpen(StoreUnavailable):
    """The database cannot be opened or upgraded: where it is, why, and what to do."""

    def __init__(self, place: str, reason: str, remedy: str) -> None:
        self.place = place
        self.reason = reason
        super().__init__(f"the database {place} cannot be used: {reason}: {remedy}")


class DataFolderUnusable(StoreUnavailable):
    """Nothing can be stored: the data folder or the database's file is gone, was replaced or is read-only."""

    def __init__(self, path: Path, fault: str) -> None:
        self.path = path
        self.fault = fault
        super().__init__(f"{path} {fault}")


class ImageUnreadable(StoreUnavailable):
    """An image of a job is in its place, but cannot be read."""

    def __init__(self, job_id: str, reason: str) -> None:
        self.job_id = job_id
        self.reason = reason
        super().__init__(f"an image of job {job_id} cannot be read: {reason}")


class NewerSchema(StoreError):
    """A newer version of the program has upgraded the database. Nothing was changed."""

    def __init__(self, revision: str, known: str, place: str = "") -> None:
        self.revision = revision
        super().__init__(
            f"the database {f'{place} ' if place else ''}was upgraded by a newer version (schema {revision}, "
            f"this version knows {known}): install that version again, or restore the database from a backup"
        )


class DamagedSnapshot(StoreError):
    """The stored counters cannot be read."""


class QueueFull(StoreError):
    """The limit of queued jobs is reached; `owner` is the key whose limit it is, None for the global one."""

    def __init__(self, queued: int, limit: int, owner: str | None = None) -> None:
        self.queued = queued
        self.limit = limit
        self.owner = owner
        super().__init__(f"{queued} jobs are queued and the limit is {limit}: try again later")


class IdempotencyConflict(StoreError):
    """The idempotency key was used before, for a different request."""

    def __init__(self, job_id: str) -> None:
        self.job_id = job_id
        super().__init__(
            f"the idempotency key belongs to job {job_id}, whose request was different: use another key"
        )


class WrongState(StoreError):
    """The job's status does not allow the operation."""

    def __init__(self, job: Job, wanted: str) -> None:
        self.job = job
        super().__init__(f"job {job.id} is {job.status}: it cannot be {wanted}")


class ImageMissing(StoreError):
    """An image of a job is no longer in its place, or is not whole."""

    def __init__(self, job_id: str, field: str, fault: str) -> None:
        self.job_id = job_id
        super().__init__(f"the {field} of job {job_id} is {fault}: send it again, as a new job")


class ResultExpired(StoreError):
    """The job has expired: its image, latents and video are deleted or about to be."""

    def __init__(self, job_id: str) -> None:
        self.job_id = job_id
        super().__init__(f"the image, latents and video of job {job_id} have expired and were deleted")
