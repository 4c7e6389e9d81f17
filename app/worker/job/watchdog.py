"""Stops a job that lost its lease, and ends a process whose job hangs.

Owns a thread that waits for nothing: neither the database nor the device can keep it from looking at the
clock. Must not know the job table.
"""

import logging
import os
import time
from collections.abc import Callable

from app.jobs import Claim
from app.loops import Loop
from app.service.parent_death import EXIT_STALLED
from app.worker.job.control import JobControl, JobLost

log = logging.getLogger(__name__)

LOOK_SECONDS = 0.5
SUSPENDED_SECONDS = 2.0  # a look that comes so much too late: the process was suspended

Current = tuple[Claim, JobControl]


class Watchdog:
    """Watches the job that runs. `current` returns it; limits are in seconds.

    After the process was suspended, the heartbeat gets `grace_seconds` to find out whether the job was given
    to another worker. The suspension counts neither as a lost lease nor as a lack of progress.
    """

    def __init__(
        self,
        current: Callable[[], Current | None],
        *,
        lease_seconds: float,
        progress_timeout_seconds: float,
        grace_seconds: float = 0.0,
    ) -> None:
        self._current = current
        self._grace_seconds = grace_seconds
        self._resumed_at = -float("inf")
        self._lease_seconds = lease_seconds
        self._progress_timeout_seconds = progress_timeout_seconds
        self._renewed_at = self._looked_at = time.monotonic()

    def start(self) -> None:
        """Start the thread."""
        self._looked_at = time.monotonic()
        Loop("watchdog", self._turn, every_seconds=LOOK_SECONDS, is_fatal=lambda _error: True).start()

    def renewed(self, sent_at: float) -> None:
        """Note that the lease was renewed by a message sent at `sent_at` (monotonic seconds).

        The lease counts from when the database received the message, which was not earlier.
        """
        self._renewed_at = sent_at

    def _turn(self) -> None:
        self.note_turn(self._looked_at)
        self._looked_at = time.monotonic()
        self.look()

    def note_turn(self, before: float) -> None:
        """Note that the last look was at `before` (monotonic seconds)."""
        now = time.monotonic()
        if now - before > LOOK_SECONDS + SUSPENDED_SECONDS:
            log.warning("process_was_suspended seconds=%.0f", now - before)
            self._resumed_at = now

    def look(self) -> None:
        """Look at the clock once."""
        current = self._current()
        if current is None:
            return
        claim, control = current
        now = time.monotonic()
        overdue = now - self._renewed_at > self._lease_seconds
        if overdue and now - self._resumed_at > self._grace_seconds and control.interrupt(JobLost):
            log.warning("lease_lost job_id=%s seconds=%.0f", claim.job.id, now - self._renewed_at)
        advanced_at = max(control.advanced_at, self._resumed_at)
        if now - advanced_at > self._progress_timeout_seconds and current is self._current():
            # Only the end of the process stops a call that hangs.
            log.critical("job_stalled job_id=%s seconds=%.0f", claim.job.id, now - control.advanced_at)
            logging.shutdown()
            os._exit(EXIT_STALLED)
