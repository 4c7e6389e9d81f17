"""Which workers of this service hang: their process runs, but no heartbeat has come for too long.

A worker reports from a thread of its own, also while it loads a model, denoises or decodes. Silence is only
time in which this file looked and the database took writes: neither a suspended machine, nor a supervisor
that was stopped, nor a locked database makes a worker silent. This file reads the job table and knows process
ids, but starts and ends no process.
"""

import json
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from enum import StrEnum
from pathlib import Path

from app.artifacts.whole_file import replace_text
from app.store import JobStore, StoreError

log = logging.getLogger(__name__)

FILE = "workers.json"
REMEMBER_SECONDS = 24 * 3600.0
LONGEST_TURN_SECONDS = 5.0
# Before its first heartbeat a worker imports torch and opens its device: from a slow disk this takes minutes.
START_FACTOR = 10
# So many missed heartbeats are silence; they do not yet end the process.
MISSED_HEARTBEATS = 3
# A worker whose process ended so often in a row does not start.
FAILURES = 3


class WorkerState(StrEnum):
    """What a worker of this service does, as far as the supervisor sees."""

    STARTING = "starting"  # it runs, or is about to, and has not reported yet
    ALIVE = "alive"
    SILENT = "silent"  # it runs, but several heartbeats are missing
    FAILING = "failing"  # its process ends again and again before it reports


@dataclass(frozen=True, slots=True)
class WorkerProcess:
    """A worker that this service keeps running. `pid` is None while it waits to be started."""

    worker_id: str
    pid: int | None
    failures: int = 0  # ends in a row, each soon after the start


@dataclass(slots=True)
class _Watched:
    pid: int
    reported: bool = False
    heartbeat_at: float = -1.0
    silent_seconds: float = 0.0
    told_seconds: float = 0.0  # the silence at which the process was last said to hang


class HeartbeatWatch:
    """Looks at the heartbeats of this service's workers; call `look` every `every_seconds`."""

    def __init__(
        self,
        store: JobStore,
        data_dir: Path,
        *,
        heartbeat_seconds: float,
        silence_seconds: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`silence_seconds`: a worker that is silent for longer hangs; 0: none ever does."""
        self.every_seconds = min(heartbeat_seconds, LONGEST_TURN_SECONDS)
        self._store = store
        self._path = data_dir / FILE
        self._missed_seconds = MISSED_HEARTBEATS * heartbeat_seconds
        self._limit_seconds = max(silence_seconds, self._missed_seconds) if silence_seconds else float("inf")
        self._clock = clock
        self._looked_at = clock()
        self._watched: dict[str, _Watched] = {}

    def look(self, workers: Sequence[WorkerProcess]) -> list[str]:
        """Return the ids of workers that hang, and publish the state of all.

        One that still runs after another such time is returned again.
        """
        now = self._clock()
        # At most two turns: in a longer gap this process did not run, and the workers may not have, either.
        elapsed = min(now - self._looked_at, 2 * self.every_seconds)
        self._looked_at = now
        self._forget_ended(workers)
        try:
            self._note_beats(elapsed)
            hung = [worker for worker in workers if self._hangs(worker)]
        finally:
            self._publish(workers, now)
        for worker in hung:
            watched = self._watched[worker.worker_id]
            watched.told_seconds = watched.silent_seconds
            text = "worker_hung worker_id=%s pid=%s silent_seconds=%.0f"
            log.error(text, worker.worker_id, worker.pid, watched.silent_seconds)
        return [worker.worker_id for worker in hung]

    def withdraw(self) -> None:
        """Remove the published file: the service ends."""
        self._path.unlink(missing_ok=True)

    def _forget_ended(self, workers: Sequence[WorkerProcess]) -> None:
        running = {worker.worker_id: worker.pid for worker in workers if worker.pid is not None}
        self._watched = {
            one: watched if (watched := self._watched.get(one)) and watched.pid == pid else _Watched(pid)
            for one, pid in running.items()
        }

    def _note_beats(self, elapsed: float) -> None:
        """Add to each worker's silence; a new heartbeat ends it."""
        try:
            rows = {row.id: row for row in self._store.workers(within_seconds=REMEMBER_SECONDS)}
            for worker_id, watched in self._watched.items():
                row = rows.get(worker_id)
                is_own = row is not None and row.device.get("worker_pid") == watched.pid
                if row is not None and is_own and row.heartbeat_at != watched.heartbeat_at:
                    watched.heartbeat_at, watched.reported = row.heartbeat_at, True
                    watched.silent_seconds = watched.told_seconds = 0.0
                else:
                    watched.silent_seconds += elapsed
            for worker_id, watched in self._watched.items():
                if watched.silent_seconds > self._missed_seconds:
                    self._store.touch_worker(worker_id)  # who cannot write cannot report
        except StoreError:
            for watched in self._watched.values():
                watched.silent_seconds = watched.told_seconds = 0.0
            raise

    def _hangs(self, worker: WorkerProcess) -> bool:
        watched = self._watched.get(worker.worker_id)
        if watched is None:
            return False
        limit = self._limit_seconds * (1 if watched.reported else START_FACTOR)
        return watched.silent_seconds - watched.told_seconds > limit

    def _state(self, worker: WorkerProcess) -> WorkerState:
        watched = self._watched.get(worker.worker_id)
        if watched is None or not watched.reported:
            late = watched is not None and watched.told_seconds > 0
            return WorkerState.FAILING if late or worker.failures >= FAILURES else WorkerState.STARTING
        return WorkerState.SILENT if watched.silent_seconds > self._missed_seconds else WorkerState.ALIVE

    def _publish(self, workers: Sequence[WorkerProcess], now: float) -> None:
        published = Published(now, {worker.worker_id: self._state(worker) for worker in workers})
        try:
            replace_text(self._path, json.dumps(asdict(published)))
        except OSError as error:
            log.warning("workers_not_published path=%s reason=%s", self._path, error)


@dataclass(frozen=True, slots=True)
class Published:
    """The workers' states for other processes of this machine; `at` is its monotonic clock in seconds."""

    at: float
    workers: dict[str, WorkerState]
