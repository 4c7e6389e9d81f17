"""Interrupts a running job: the heartbeat's thread sets a reason, the job's thread checks for one.

Owns the reasons to stop, the checks at every step and chunk, and the bounded wait for memory. Must not know
the job table or devices.
"""

import threading
import time
from collections.abc import Callable
from typing import TypeVar

from adaptive.errors import DoesNotFit
from app.jobs import Claim

T = TypeVar("T")
MEMORY_POLL_SECONDS = 0.5
# A job waits this long before it yields its worker: memory is often busy for a moment only.
PATIENCE_SECONDS = 2.0


class Interrupted(Exception):
    """Base of the reasons to stop a job that has not failed."""


class JobCanceled(Interrupted):
    """A client canceled the job."""


class JobLost(Interrupted):
    """This worker no longer holds the job: its lease ended, or another worker has it."""


class WorkerStopping(Interrupted):
    """The worker stops at the next step or chunk; the job goes back to the queue."""


class JobYielded(Interrupted):
    """The job went back to the queue, to wait for memory or for one of higher priority; its worker now holds
    another one, `claim`.
    """

    def __init__(self, claim: Claim) -> None:
        self.claim = claim
        super().__init__(f"yielded to job {claim.job.id}")


class JobHandedOver(Interrupted):
    """The job is denoised and went back to the queue: another worker decodes it."""


class CannotDecode(Interrupted):
    """A worker that only decodes has found the job's latents unusable; the job is denoised again."""


class MemoryTaken(Interrupted):
    """Another program took the memory of a running decode and kept it; the job goes back to the queue."""


class JobControl:
    """Whether and why one running job should stop, and when it last advanced (monotonic seconds)."""

    def __init__(self) -> None:
        self._reason: type[Interrupted] | None = None
        self._interrupted = threading.Event()
        self._hands_back = False
        self.advanced_at = time.monotonic()

    def interrupt(self, reason: type[Interrupted]) -> bool:
        """Stop the job at its next step or chunk; the first reason counts. Returns whether this is the
        first."""
        if self._reason is not None:
            return False
        self._reason = reason
        self._interrupted.set()
        return True

    def hand_back(self) -> None:
        """Let the job go back to the queue at its next step if nothing is lost by that; else it goes on."""
        self._hands_back = True

    @property
    def goes_back(self) -> bool:
        """Whether the job is to go back to the queue at its next step, with its steps."""
        return self._reason is WorkerStopping or (self._hands_back and self._reason is None)

    @property
    def stops(self) -> bool:
        """Whether the job is to stop or to go back to the queue. Asking does not count as an advance."""
        return self._reason is not None or self._hands_back

    def check(self) -> None:
        """Record that the job advances; raise the reason to stop, if there is one."""
        self.advanced_at = time.monotonic()
        if self._reason is not None:
            raise self._reason

    def pause(self, seconds: float) -> None:
        """Wait for at most `seconds`, or until the job is interrupted; then `check`."""
        self._interrupted.wait(seconds)
        self.check()


def never_yield() -> None:
    """Keep the worker while the job waits: the default of `wait_for_memory`."""


def wait_for_memory(
    attempt: Callable[[], T],
    control: JobControl,
    *,
    limit_seconds: float,
    may_fit_later: Callable[[DoesNotFit], bool],
    on_wait: Callable[[DoesNotFit], None],
    yield_to_smaller: Callable[[], None] = never_yield,
) -> T:
    """Repeat `attempt` while it raises `DoesNotFit`, for at most `limit_seconds`; returns its result.

    Calls `on_wait` once, at the first refusal. After `PATIENCE_SECONDS` it calls `yield_to_smaller` at every
    poll, which may raise `JobYielded`. Raises `DoesNotFit` when the limit is reached, or at once if
    `may_fit_later` returns False.
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


def wait_for_bytes(
    needed_bytes: int,
    budget_bytes: Callable[[], int],
    control: JobControl,
    *,
    limit_seconds: float,
    on_wait: Callable[[DoesNotFit], None],
) -> bool:
    """Wait until the budget has `needed_bytes`, for at most `limit_seconds`; see `wait_for_memory`.

    Returns whether they became free: False at the limit, and where they were free from the start, so that
    memory is not what is missing.
    """
    refusals: list[DoesNotFit] = []

    def enough() -> bool:
        budget = budget_bytes()
        if budget < needed_bytes:
            what = "continuing the decode"
            raise DoesNotFit(what, needed_bytes=needed_bytes, budget_bytes=max(0, budget))
        return bool(refusals)

    def waits(refusal: DoesNotFit) -> None:
        refusals.append(refusal)
        on_wait(refusal)

    try:
        return wait_for_memory(
            enough, control, limit_seconds=limit_seconds, may_fit_later=lambda _refusal: True, on_wait=waits
        )
    except DoesNotFit:
        return False
