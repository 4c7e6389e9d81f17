"""The background work of the API process, and what /healthz says of it and of all other loops.

Expired leases, what is to be deleted, old events and unschedulable jobs each have a loop of their own, so
that none can stop another. One more loop asks whether a job could be stored now.
"""

import logging
from collections.abc import Callable, Iterable

from adaptive.version import __version__
from app.jobs import Json
from app.loops import SILENT_SECONDS, Loop, LoopState, start_all, stop_all
from app.scheduling.unschedulable import UnschedulableJobs
from app.service.disposal import Disposal
from app.service.exposition.exporter import Exporter
from app.store import DataFolderUnusable, JobStore, StoreError

log = logging.getLogger(__name__)
EVERY_SECONDS = 2.0
STORAGE_SILENT_SECONDS = 8.0
STOP_SECONDS = 5.0


class Background:
    """The loops."""

    def __init__(
        self, store: JobStore, unschedulable: UnschedulableJobs, disposal: Disposal, exporter: Exporter
    ) -> None:
        self._store = store
        self._unschedulable = unschedulable
        self._exporter = exporter
        self.disposal = disposal
        self.storage_fault: str | None = None

        def loop(name: str, turn: Callable[[], None], silent_seconds: float = SILENT_SECONDS) -> Loop:
            known = (StoreError,)
            return Loop(name, turn, every_seconds=EVERY_SECONDS, silent_seconds=silent_seconds, known=known)

        self.loops = (
            loop("leases", self._requeue_expired),
            loop("disposal", disposal.turn),
            loop("event-retention", self._retire_events),
            loop("unschedulable-jobs", self._fail_unschedulable),
            loop("storage-check", self._check_storage, STORAGE_SILENT_SECONDS),
        )

    def start(self) -> None:
        """Start the loops."""
        start_all(self.loops)

    def stop(self) -> None:
        """Stop the loops after the turns under way."""
        stop_all(self.loops, STOP_SECONDS * len(self.loops))

    def _requeue_expired(self) -> None:
        for job_id in self._store.requeue_expired():
            log.warning("lease_expired job_id=%s", job_id)

    def _retire_events(self) -> None:
        if events := self._exporter.retire_events():
            log.info("events_deleted events=%d", events)

    def _fail_unschedulable(self) -> None:
        for job_id in self._unschedulable.fail():
            log.warning("job_unschedulable job_id=%s", job_id)

    def _check_storage(self) -> None:
        try:
            self._store.check()
        except DataFolderUnusable as error:
            self.storage_fault = error.fault
            raise
        self.storage_fault = None


def health(states: Iterable[LoopState], storage_fault: str | None) -> tuple[bool, Json]:
    """Return whether the process can do its work, and the JSON of /healthz.

    It cannot if a loop is silent, or if nothing can be stored in the data folder.
    """
    loops = list(states)
    ok = storage_fault is None and not any(loop.is_silent for loop in loops)
    return ok, {
        "status": "ok" if ok else "failing",
        "version": __version__,
        "storage": storage_fault or "usable",
        "loops": [loop.as_json() for loop in loops],
    }
