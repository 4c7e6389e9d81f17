"""Downloads a job's model before it is loaded, and reports how far the download is.

Owns how often that is told. Bytes that come count as an advance for the watchdog; waiting for them does not.
A job that is to stop ends its download at once. Must not know the hub.
"""

import time
from collections.abc import Callable
from typing import Protocol

from app.config import Settings
from app.jobs import Json
from app.models.downloads.download import DownloadCanceled, download
from app.models.downloads.progress import DownloadProgress
from app.models.entries import ModelEntry
from app.worker.job.control import JobControl, WorkerStopping

REPORT_SECONDS = 1.0
COUNT_SECONDS = 10.0  # between the events that the metrics count


class Report(Protocol):
    """Writes the share of the stage and an event; raises if the job is to stop."""

    def __call__(self, share: float, *, data: Json) -> None:
        """Report."""


def fetch_model(
    entry: ModelEntry,
    settings: Settings,
    control: JobControl,
    report: Report,
    count: Callable[[Json], object],
    only: str | None = None,
) -> None:
    """Download what is missing of the model, or of its component `only`.

    `count` writes an event for the metrics, also when the job stops. Raises `DownloadFailed`, and the reason
    to stop if there is one: what was received stays.
    """
    reports = _Reports(control, report, count)
    try:
        download(entry, settings, reports.seen, lambda: control.stops, only=only)
    except DownloadCanceled:
        if control.goes_back:
            control.interrupt(WorkerStopping)
        control.check()
    finally:
        reports.count()


class _Reports:
    """Tells the job table of a download, not too often."""

    def __init__(self, control: JobControl, report: Report, count: Callable[[Json], object]) -> None:
        self._control = control
        self._report = report
        self._count = count
        self._reported_at = self._counted_at = 0.0
        self._received_bytes = self._counted_bytes = self._done_bytes = 0

    def seen(self, progress: DownloadProgress) -> None:
        """Take note of the progress, and tell it if that is due."""
        now = time.monotonic()
        if progress.done_bytes != self._done_bytes:
            self._control.advanced_at = now
        self._done_bytes, self._received_bytes = progress.done_bytes, progress.received_bytes
        if now - self._reported_at >= REPORT_SECONDS or progress.share >= 1.0:
            self._reported_at, advanced_at = now, self._control.advanced_at
            self._report(progress.share, data={"download": progress.as_json()})
            self._control.advanced_at = advanced_at  # telling is no advance
        if now - self._counted_at >= COUNT_SECONDS:
            self._counted_at = now
            self.count()

    def count(self) -> None:
        """Let the metrics count what came since the last time."""
        received = self._received_bytes - self._counted_bytes
        if received > 0:
            self._counted_bytes = self._received_bytes
            self._count({"received_bytes": received})
