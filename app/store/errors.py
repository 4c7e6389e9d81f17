"""What the job store raises on purpose.

StoreError
├── NoSuchJob             there is no job of that id
├── StoreUnavailable      the database refuses: locked, gone, disk full; nothing was written
├── QueueFull             the limit of waiting jobs is reached      (queued, limit, owner)
├── IdempotencyConflict   the key belongs to another request        (job_id)
├── WrongState            the job's status does not allow it        (job)
└── ResultExpired         the job's image and result are gone       (job_id)
"""

from app.jobs import Job


class StoreError(Exception):
    """Base of the job store's errors."""


class NoSuchJob(StoreError):
    """There is no job of that id."""

    def __init__(self, job_id: str) -> None:
        self.job_id = job_id
        super().__init__(f"there is no job {job_id!r}")


class StoreUnavailable(StoreError):
    """The database cannot take this now: it is locked, gone, or the disk is full. Nothing was written."""


class QueueFull(StoreError):
    """So many jobs are waiting that no more are taken; `owner`: whose limit it is, None for everyone's."""

    def __init__(self, queued: int, limit: int, owner: str | None = None) -> None:
        self.queued = queued
        self.limit = limit
        self.owner = owner
        super().__init__(f"{queued} jobs are queued, the limit is {limit}")


class IdempotencyConflict(StoreError):
    """The idempotency key was used before, for a different request."""

    def __init__(self, job_id: str) -> None:
        self.job_id = job_id
        super().__init__(f"the idempotency key belongs to job {job_id}, which asked for something else")


class WrongState(StoreError):
    """The job's status does not allow what was asked."""

    def __init__(self, job: Job, wanted: str) -> None:
        self.job = job
        super().__init__(f"job {job.id} is {job.status}: it cannot be {wanted}")


class ResultExpired(StoreError):
    """The job's time is over: its image, latents and video are gone or about to go."""

    def __init__(self, job_id: str) -> None:
        self.job_id = job_id
        super().__init__(f"what job {job_id} was made from and made was deleted when its time was over")
