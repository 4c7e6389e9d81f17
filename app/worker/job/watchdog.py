"""Stops a job that lost its lease, and ends a process whose job hangs.

Owns a thread that waits for nothing: neither the database nor the device can keep it from looking at the
clock. Must not know the job table.
"""

import logging
import os
import threading
import time
from collections.abc import Callable

from app.jobs import Claim
from app.worker.job.control import JobControl, JobLost

log = logging.getLogger(__name__)

EXIT_STALLED = 75  # EX_TEMPFAIL of sysexits.h
LOOK_SECONDS = 0.5

Current = tuple[Claim, JobControl]


class Watchdog:
    """Watches the job that runs. `current` returns it; limits are in seconds."""

    def __init__(
        self, current: Callable[[], Current | None], *, lease_seconds: float, progress_timeout_seconds: float
    ) -> None:
        self._current = current
        self._lease_seconds = lease_seconds
        self._progress_timeout_seconds = progress_timeout_seconds
        self._renewed_at = time.monotonic()

    def start(self) -> None:
        """Start the thread."""
        threading.Thread(target=self._watch, name="watchdog", daemon=True).start()

    def renewed(self, sent_at: float) -> None:
        """Note that the lease was renewed by a message sent at `sent_at` (monotonic seconds).

        The lease counts from when the database received the message, which was not earlier.
        """
        self._renewed_at = sent_at

    def _watch(self) -> None:
        while True:
            time.sleep(LOOK_SECONDS)
            self.look()

    def look(self) -> None:
        """Look at the clock once."""
        current = self._current()
        if current is None:
            return
        claim, control = current
        now = time.monotonic()
        if now - self._renewed_at > self._lease_seconds and control.interrupt(JobLost):
            log.warning("lease_lost job_id=%s seconds=%.0f", claim.job.id, now - self._renewed_at)
        if now - control.advanced_at > self._progress_timeout_seconds and current is self._current():
            # Only the end of the process stops a call that hangs.
            log.critical("job_stalled job_id=%s seconds=%.0f", claim.job.id, now - control.advanced_at)
            logging.shutdown()
            os._exit(EXIT_STALLED)
