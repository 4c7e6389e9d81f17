"""The memory of every device over the last hour, and the decodes that ran on it meanwhile.

Readings are those of the metrics: the workers' reports and, where the driver tells it, its own reading. They
are kept in this process, and so is what events tell of decodes: a new process begins with none. Times are the
database's. This file knows no HTTP and no SQL.
"""

import math
import threading
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any, TypeVar

from adaptive.device.nvml import GpuInfo, NvmlState
from app.jobs import Event, Stage, WorkerRow
from app.loops import Loop

EVERY_SECONDS = 4.0
KEPT_SECONDS = 3600.0
MOST_READINGS = int(KEPT_SECONDS / EVERY_SECONDS)
MOST_WORKERS = 64
MOST_DECODES = 500
# After these events the job is with no worker.
_LET_GO = frozenset({"finished", "requeued", "preempted", "held", "queued_again"})

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Reading:
    """Memory of a device in bytes, at a time in seconds since the epoch. `own_bytes` is the worker's part."""

    at: float
    total_bytes: int
    free_bytes: int
    own_bytes: int


@dataclass(frozen=True, slots=True)
class Decode:
    """A decode on a worker's device; `ended_at` is None while it runs.

    Peaks are bytes above what was in use when it began.
    """

    job_id: str
    worker_id: str
    started_at: float
    ended_at: float | None = None
    predicted_peak_bytes: int | None = None
    measured_peak_bytes: int | None = None


class MemoryHistory:
    """The last hour's readings by worker, and decodes. Safe to use from many threads."""

    def __init__(
        self,
        read_workers: Callable[[], Sequence[WorkerRow]],
        read_gpus: Callable[[], Sequence[GpuInfo]],
        time: Callable[[], float],
        known: tuple[type[Exception], ...] = (),
    ) -> None:
        """`known` are exceptions of `read_workers` and `time` that may pass."""
        self._read_workers = read_workers
        self._read_gpus = read_gpus
        self._time = time
        self._lock = threading.Lock()
        self._readings: dict[str, deque[Reading]] = {}
        self._decodes: deque[Decode] = deque(maxlen=MOST_DECODES)
        self._claimed: dict[str, str] = {}
        self._predicted: dict[str, int] = {}
        self._running: dict[str, Decode] = {}
        # A driver that does not answer is no reason to restart this process: the loop is never silent.
        self.loop = Loop(
            "memory-history", self.turn, every_seconds=EVERY_SECONDS, silent_seconds=math.inf, known=known
        )

    def turn(self) -> None:
        """Read every device."""
        workers, gpus, now = self._read_workers(), self._read_gpus(), self._time()
        by_uuid = {gpu.uuid: gpu for gpu in gpus if gpu.uuid and gpu.state is NvmlState.OK}
        with self._lock:
            for worker in workers:
                reading = _reading(worker, by_uuid.get(str(worker.device.get("uuid"))), now)
                if reading.total_bytes:
                    kept = self._readings.pop(worker.id, None) or deque(maxlen=MOST_READINGS)
                    kept.append(reading)
                    self._readings[worker.id] = kept  # the last one to report is the last one to go
            while len(self._readings) > MOST_WORKERS:
                del self._readings[next(iter(self._readings))]

    def apply(self, events: Sequence[Event]) -> None:
        """Learn of decodes from the events of jobs."""
        with self._lock:
            for event in events:
                self._apply(event)

    def _apply(self, event: Event) -> None:
        job_id, data = event.job_id, event.data
        if event.kind == "claimed" and "worker_id" in data:
            _put(self._claimed, job_id, str(data["worker_id"]))
        elif event.kind == "plan" and data.get("predicted_peak_bytes") is not None:
            predicted = int(data["predicted_peak_bytes"])
            _put(self._predicted, job_id, predicted)
            if (decode := self._running.get(job_id)) and decode.predicted_peak_bytes is None:
                self._running[job_id] = replace(decode, predicted_peak_bytes=predicted)
        elif event.kind == "stage" and job_id in self._claimed:
            if data.get("stage") == Stage.DECODING and job_id not in self._running:
                peak = self._predicted.get(job_id)
                begun = Decode(job_id, self._claimed[job_id], event.at, predicted_peak_bytes=peak)
                _put(self._running, job_id, begun)
            elif data.get("stage") == Stage.ENCODING:
                self._end(event, job_id)
        elif event.kind in _LET_GO:
            self._end(event, job_id)
            self._claimed.pop(job_id, None)
            self._predicted.pop(job_id, None)
            if event.kind == "finished" and (report := data.get("decode")):
                self._measure(job_id, report)

    def _end(self, event: Event, job_id: str) -> None:
        decode = self._running.pop(job_id, None)
        if decode is not None:
            self._decodes.append(replace(decode, ended_at=event.at))

    def _measure(self, job_id: str, report: dict[str, Any]) -> None:
        """Note the peaks of the job's last decode."""
        for back, decode in enumerate(islice(reversed(self._decodes), MOST_DECODES), 1):
            if decode.job_id == job_id:
                self._decodes[-back] = replace(
                    decode,
                    predicted_peak_bytes=report.get("predicted_peak_bytes"),
                    measured_peak_bytes=report.get("measured_peak_bytes"),
                )
                return

    def readings(self, since: float) -> dict[str, list[Reading]]:
        """Return the readings at or after `since` by worker, in order of time; none for the others."""
        with self._lock:
            found = {name: [one for one in kept if one.at >= since] for name, kept in self._readings.items()}
        return {name: kept for name, kept in found.items() if kept}

    def decodes(self, since: float) -> list[Decode]:
        """Return the decodes that run, or ended at or after `since`, in order of their ends."""
        with self._lock:
            ended = [one for one in self._decodes if one.ended_at is not None and one.ended_at >= since]
            return [*ended, *self._running.values()]


def _put(kept: dict[str, T], job_id: str, value: T) -> None:
    """Note a job's value; the oldest one goes if jobs vanish without an end."""
    kept.pop(job_id, None)
    kept[job_id] = value
    if len(kept) > MOST_DECODES:
        del kept[next(iter(kept))]


def _reading(worker: WorkerRow, gpu: GpuInfo | None, now: float) -> Reading:
    report = worker.device
    total = int(report.get("total_bytes") or 0)
    free = int(report.get("free_bytes") or 0)
    if gpu is not None:
        total, free = gpu.total_bytes, gpu.free_bytes
    return Reading(now, total, free, min(int(report.get("own_bytes") or 0), total))
