"""Asks between two steps whether a client wants a running job to finish early. Must not know pipelines."""

import time

from app.jobs import Claim
from app.store import JobStore

ASK_SECONDS = 1.0  # the shortest time between two looks into the job table


class FinishingEarly:
    """The requests for one claimed job."""

    def __init__(self, store: JobStore, claim: Claim, ask_seconds: float = ASK_SECONDS) -> None:
        self._store = store
        self._job_id = claim.job.id
        self._ask_seconds = ask_seconds
        self._asked_at = float("-inf")

    def is_wanted(self) -> bool:
        """Whether the denoise is to end with its next step; looks at most every `ASK_SECONDS`."""
        now = time.monotonic()
        if now - self._asked_at < self._ask_seconds:
            return False
        self._asked_at = now
        return self._store.is_finish_early_requested(self._job_id)
