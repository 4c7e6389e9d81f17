"""The parent of all processes: starts, watches, restarts and stops them.

Owns when a process starts, how long a restart waits after a crash, and how a stop proceeds. It imports no
torch, knows children only as command lines, and reaches everything else only through callbacks.
"""

import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import FrameType
from typing import Protocol

from app.loops import Loop
from app.service.ends.deaths import HUNG, OomWatch, reason_of
from app.service.heartbeats import WorkerProcess
from app.service.parent_death import EXIT_DEVICE_UNAVAILABLE
from app.store import StoreError

log = logging.getLogger(__name__)

BACKOFF_SECONDS = (0.0, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0)
HEALTHY_SECONDS = 60.0  # a process that ran this long restarts without waiting
TICK_SECONDS = 0.1
KILL_SECONDS = 5.0  # between SIGTERM and SIGKILL for processes that do not drain


@dataclass(frozen=True, slots=True)
class ChildSpec:
    """A process to keep running: arguments of the `framefit` command and additions to its environment.

    A `one_shot` process is done when it exits with 0. A child that `drains` gets `drain_seconds` to finish
    its job. `fallback` replaces a child that exits with EXIT_DEVICE_UNAVAILABLE.
    """

    name: str
    arguments: tuple[str, ...]
    environ: Mapping[str, str] = field(default_factory=dict)
    worker_id: str | None = None
    one_shot: bool = False
    drains: bool = False
    inherits_fd: int | None = None
    fallback: "ChildSpec | None" = None


class Child:
    """One child process and its restarts."""

    def __init__(self, spec: ChildSpec) -> None:
        self.spec = spec
        self.process: subprocess.Popen[bytes] | None = None
        self.done = False
        self.hung = False  # it was killed because it hung
        self._failures = 0
        self._started_at = 0.0
        self._start_at = 0.0

    def start_if_due(self) -> None:
        """Start the process unless it runs, is done or waits to restart. Main thread only."""
        if self.done or self.process is not None or time.monotonic() < self._start_at:
            return
        # The child ends with the thread that starts it. It gets its own session, so that the supervisor alone
        # receives the terminal's signals and passes them on.
        command = [sys.executable, "-m", "app", *self.spec.arguments, "--supervisor-pid", str(os.getpid())]
        descriptors = () if self.spec.inherits_fd is None else (self.spec.inherits_fd,)
        try:
            self.process = subprocess.Popen(
                command,
                env={**os.environ, **self.spec.environ},
                stdin=subprocess.DEVNULL,
                pass_fds=descriptors,
                start_new_session=True,
            )
        except OSError as error:  # no memory or no process id is left, for a moment
            wait = self._postpone()
            text = "process_not_started name=%s restart_in_seconds=%.1f reason=%s"
            log.error(text, self.spec.name, wait, error)
            return
        self.hung = False
        self._started_at = time.monotonic()
        log.info("process_started name=%s pid=%d", self.spec.name, self.process.pid)

    def reap(self) -> int | None:
        """Return the exit status if the process has ended since the last call, else None."""
        if self.process is None or (status := self.process.poll()) is None:
            return None
        self.process = None
        if status == 0 and self.spec.one_shot:
            self.done = True
            return status
        lived = time.monotonic() - self._started_at
        if lived >= HEALTHY_SECONDS:
            self._failures = -1
        wait = self._postpone()
        log.warning("process_ended name=%s status=%d restart_in_seconds=%.1f", self.spec.name, status, wait)
        return status

    def _postpone(self) -> float:
        self._failures += 1
        wait = BACKOFF_SECONDS[min(self._failures, len(BACKOFF_SECONDS) - 1)]
        self._start_at = time.monotonic() + wait
        return wait

    @property
    def as_worker(self) -> WorkerProcess | None:
        """The process as a worker; None if it is none, or is not started again."""
        if self.spec.worker_id is None or self.done:
            return None
        pid = None if self.process is None else self.process.pid
        return WorkerProcess(self.spec.worker_id, pid, self._failures)

    def kill_hung(self) -> None:
        """Kill the process with all that it started, which share its session."""
        if self.process is not None and self.process.poll() is None:
            self.hung = True
            os.killpg(self.process.pid, signal.SIGKILL)

    def signal(self, number: int) -> None:
        """Send a signal if the process runs."""
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(number)


class WorkerWatch(Protocol):
    """Says which workers hang; asked every `every_seconds`."""

    every_seconds: float

    def look(self, workers: Sequence[WorkerProcess]) -> Sequence[str]:
        """Return the ids of those that hang."""
        ...


class Supervisor:
    """Keeps the children running until SIGTERM or SIGINT.

    It calls `on_worker_death(worker_id, reason)` when a worker process has ended, so that its job is requeued
    at once (the reasons are those of `app.attempts`), `on_device_unavailable(spec)` when a worker has given
    its device up, and `on_tick()` in every iteration of its loop. `watch` says which workers hang: they are
    killed and started again.
    """

    def __init__(
        self,
        children: Sequence[ChildSpec],
        *,
        drain_seconds: float,
        on_worker_death: Callable[[str, str], None],
        on_device_unavailable: Callable[[ChildSpec], None] = lambda _spec: None,
        on_tick: Callable[[], None] = lambda: None,
        oom_watch: OomWatch | None = None,
        watch: WorkerWatch | None = None,
    ) -> None:
        self._children = [Child(spec) for spec in children]
        self._drain_seconds = drain_seconds
        self._on_worker_death = on_worker_death
        self._on_device_unavailable = on_device_unavailable
        self._oom_watch = oom_watch or OomWatch()
        self._stops: list[int] = []
        # Neither is started as a thread: children end with the thread that started them.
        self._supervision = Loop("supervision", self._supervise, every_seconds=TICK_SECONDS)
        self._housekeeping = Loop("housekeeping", on_tick, every_seconds=TICK_SECONDS)
        self._loops = [self._supervision, self._housekeeping]
        if watch is not None:
            self._loops.append(self._watching(watch))
        self._due_at = dict.fromkeys(self._loops, 0.0)

    def run(self) -> None:
        """Run until SIGTERM or SIGINT, then drain. Blocks. Call from the main thread."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._ask_stop)
        try:
            while not self._stops:
                self._tick(*self._loops)
            self._drain()
        finally:
            self._kill_all()

    def _ask_stop(self, number: int, _frame: FrameType | None) -> None:
        self._stops.append(number)

    def _tick(self, *loops: Loop) -> None:
        for loop in loops:
            if time.monotonic() >= self._due_at[loop]:
                self._due_at[loop] = time.monotonic() + loop.step()
        time.sleep(TICK_SECONDS)

    def _supervise(self) -> None:
        for child in self._children:
            status = child.reap()
            # Looked at after each end, so that a rise belongs to it.
            oom_killed = status is not None and self._oom_watch.has_risen()
            if status is not None and child.spec.worker_id is not None:
                reason = HUNG if child.hung else reason_of(status, oom_killed=oom_killed)
                log.warning("worker_ended worker_id=%s reason=%s", child.spec.worker_id, reason)
                self._on_worker_death(child.spec.worker_id, reason)
                if status == EXIT_DEVICE_UNAVAILABLE:
                    self._fall_back(child)
            child.start_if_due()

    def _watching(self, watch: WorkerWatch) -> Loop:
        def turn() -> None:
            workers = [worker for child in self._children if (worker := child.as_worker) is not None]
            hung = set(watch.look(workers))
            for child in self._children:
                if child.spec.worker_id in hung:
                    child.kill_hung()

        return Loop("heartbeat-watch", turn, every_seconds=watch.every_seconds, known=(StoreError,))

    def _fall_back(self, child: Child) -> None:
        """Replace a worker whose device cannot be used; all such workers share one replacement."""
        child.done = True
        self._on_device_unavailable(child.spec)
        replacement = child.spec.fallback
        if replacement is None:
            log.error("device_unavailable name=%s replaced_by=nothing", child.spec.name)
            return
        if any(other.spec.name == replacement.name for other in self._children):
            return
        log.warning("device_unavailable name=%s replaced_by=%s", child.spec.name, replacement.name)
        self._children.append(Child(replacement))

    def _drain(self) -> None:
        """Let the workers finish their jobs within the drain time, then stop every process.

        Ctrl-C or a second signal makes the workers stop at once.
        """
        draining = [child for child in self._children if child.spec.drains]
        log.info("drain_started seconds=%.0f", self._drain_seconds)
        hurried = signal.SIGINT in self._stops
        for child in draining:
            child.signal(signal.SIGINT if hurried else signal.SIGTERM)
        deadline = time.monotonic() + self._drain_seconds
        while self._running(draining) and time.monotonic() < deadline:
            if len(self._stops) > 1 and not hurried:
                hurried = True
                for child in draining:
                    child.signal(signal.SIGINT)
            self._tick(self._housekeeping)
        for child in self._children:
            child.signal(signal.SIGTERM)
        deadline = time.monotonic() + KILL_SECONDS
        while self._running(self._children) and time.monotonic() < deadline:
            time.sleep(TICK_SECONDS)

    def _kill_all(self) -> None:
        for child in self._children:
            child.signal(signal.SIGKILL)
            if child.process is not None:
                child.process.wait()
                child.process = None
            if child.spec.worker_id is not None:
                self._on_worker_death(child.spec.worker_id, "worker_stopped")

    @staticmethod
    def _running(children: Sequence[Child]) -> bool:
        return any(child.process is not None and child.process.poll() is None for child in children)
