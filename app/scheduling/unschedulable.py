"""Fails queued jobs that no worker can ever take: every live device is too small, or their model is gone.

A job may be accepted before any worker has reported its device's capacity, and a card may be swapped for a
smaller one. Such a job fails with both numbers after a grace time, since a restarting device is briefly
missing.
"""

import time
from collections.abc import Callable, Collection, Iterable

from app.jobs import Json, WorkerRow
from app.store import JobStore


class UnschedulableJobs:
    """Remembers since when each job has been unschedulable; call `fail` every few seconds."""

    def __init__(
        self,
        store: JobStore,
        models: Collection[str],
        alive_workers: Callable[[], Iterable[WorkerRow]],
        *,
        grace_seconds: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._store = store
        self._models = models
        self._alive_workers = alive_workers
        self._grace_seconds = grace_seconds
        self._clock = clock
        self._since: dict[str, float] = {}

    def fail(self) -> list[str]:
        """Fail the jobs that have been unschedulable for the whole grace time; returns their ids."""
        now, found = self._clock(), self._unschedulable()
        self._since = {job_id: self._since.get(job_id, now) for job_id in found}
        due = [job_id for job_id, since in self._since.items() if now - since >= self._grace_seconds]
        return [job_id for job_id in due if self._store.fail_queued(job_id, found[job_id])]

    def _unschedulable(self) -> dict[str, Json]:
        """The error of each job that no live worker can take, by job id."""
        queued_models = self._store.queued_models()
        if not queued_models:
            return {}
        workers = list(self._alive_workers())
        found: dict[str, Json] = {}
        for model in queued_models:
            if model not in self._models:
                error = {"code": "model_gone", "message": f"model {model} is no longer offered"}
                found |= dict.fromkeys(self._store.queued_beyond(model, -1), error)
            elif (capacity := _largest_capacity(model, workers)) is not None:
                beyond = self._store.queued_beyond(model, capacity)
                found |= {job_id: _does_not_fit(needed, capacity) for job_id, needed in beyond.items()}
        return found


def _largest_capacity(model: str, workers: Iterable[WorkerRow]) -> int | None:
    """Bytes of the largest device that serves the model; None if no device does or one did not report."""
    capacities = [
        worker.device.get("capacity_bytes")
        for worker in workers
        if model in (worker.device.get("models") or [model])
    ]
    if not capacities or None in capacities:
        return None
    return max(int(capacity) for capacity in capacities if capacity is not None)


def _does_not_fit(needed_bytes: int, available_bytes: int) -> Json:
    needs = f"decoding needs {needed_bytes:,} bytes in its smallest allowed chunk"
    return {
        "code": "does_not_fit",
        "message": f"{needs}; the most any device can give is {available_bytes:,} bytes",
        "data": {"needed_bytes": needed_bytes, "available_bytes": available_bytes},
    }
