"""When a job will be done, as far as the past tells: how long jobs of its model took, times those before
it.
"""

import threading
from collections import deque
from collections.abc import Sequence
from statistics import median
from typing import TYPE_CHECKING

from app.jobs import Event, Job, JobStatus

if TYPE_CHECKING:
    from app.api.service import Service

REMEMBERED = 50


class RunTimes:
    """Seconds of work that recent jobs took, by model; follows the events."""

    def __init__(self) -> None:
        self._seconds: dict[str, deque[float]] = {}
        self._lock = threading.Lock()

    def apply(self, events: Sequence[Event]) -> None:
        """Learn from the jobs that succeeded."""
        with self._lock:
            for event in events:
                durations = event.data.get("durations")
                if event.kind == "finished" and event.data["outcome"] == JobStatus.SUCCEEDED and durations:
                    recent = self._seconds.setdefault(event.data["model"], deque(maxlen=REMEMBERED))
                    recent.append(sum(durations.values()))

    def expected(self, model: str) -> float | None:
        """Median seconds of a job of the model; of any job where that model has none; None where nothing ran
        yet.
        """
        with self._lock:
            recent = self._seconds.get(model) or [one for many in self._seconds.values() for one in many]
            return median(recent) if recent else None


def eta_seconds(service: "Service", job: Job) -> float | None:
    """Seconds until the job is expected to be done; None where it has ended or nothing is known."""
    expected = service.run_times.expected(job.spec.model)
    if expected is None or job.status.is_terminal:
        return None
    if job.status is JobStatus.RUNNING:
        return round(expected * (1 - job.progress), 1)
    workers = max(1, len(service.alive_workers()))
    turns = -(-(job.queue_position or 1) // workers)
    return round(expected * turns, 1)
