"""What may interrupt a running job, and how it learns of it: one object between the heartbeat's thread and
the job's.

The job asks at every step and chunk (`check`); whoever knows better sets a flag. Knows nothing of stores or
devices.
"""

import threading
import time
from collections.abc import Callable
from typing import TypeVar

from adaptive.errors import DoesNotFit
from app.jobs import Claim

T = TypeVar("T")
MEMORY_POLL_SECONDS = 0.5
# Memory that is only busy for a moment is not worth giving a worker away for.
PATIENCE_SECONDS = 2.0


class Interrupted(Exception):
    """Base of the reasons to stop a job that are no failure of it."""


class JobCanceled(Interrupted):
    """Somebody asked for the job to be canceled."""


class JobLost(Interrupted):
    """The job is not ours any more: its lease ended, or another worker has it."""


class WorkerStopping(Interrupted):
    """The worker was told to stop at the next boundary; the job goes back to the queue."""


class JobYielded(Interrupted):
    """The job waits for memory in the queue again; its worker holds a smaller one, `claim`."""

    def __init__(self, claim: Claim) -> None:
        self.claim = claim
        super().__init__(f"made way for {claim.job.id}")


class JobControl:
    """The flags of one running job, and when it was last seen to advance (monotonic seconds)."""

    def __init__(self) -> None:
        self._reason: type[Interrupted] | None = None
        self._wake = threading.Event()
        self.advanced_at = time.monotonic()

    def interrupt(self, reason: type[Interrupted]) -> None:
        """Stop the job at its next step or chunk; the first reason counts."""
        if self._reason is None:
            self._reason = reason
            self._wake.set()

    def check(self) -> None:
        """Note that the job advances; raise the reason to stop, where there is one."""
        self.advanced_at = time.monotonic()
        if self._reason is not None:
            raise self._reason

    def pause(self, seconds: float) -> None:
        """Wait, but not longer than until the job is interrupted; then as `check`."""
        self._wake.wait(seconds)
        self.check()


def stay() -> None:
    """Wait where one is."""


def wait_for_memory(
    attempt: Callable[[], T],
    control: JobControl,
    *,
    limit_seconds: float,
    may_fit_later: Callable[[DoesNotFit], bool],
    on_wait: Callable[[DoesNotFit], None],
    yield_to_smaller: Callable[[], None] = stay,
) -> T:
    """Repeat `attempt` while it raises `DoesNotFit`, for a bounded time.

    `on_wait` is told once, at the first refusal. `yield_to_smaller` is called at every look after a short
    patience, and may raise `JobYielded`. A refusal that no waiting can change, or that outlasts the limit, is
    raised.
    """
    deadline: float | None = None
    while True:
        try:
            return attempt()
        except DoesNotFit as error:
            refusal = error
        if not may_fit_later(refusal):
            raise refusal
        if deadline is None:
            deadline = time.monotonic() + limit_seconds
            on_wait(refusal)
        now = time.monotonic()
        if now >= deadline:
            raise refusal
        if now >= deadline - limit_seconds + PATIENCE_SECONDS:
            yield_to_smaller()
        control.pause(MEMORY_POLL_SECONDS)
