"""Sends the trace of each job that ends. Of several API processes, the one that exports the counters does it.

A job whose trace the collector does not take stays here and is tried again. A restarted process sees the last
jobs again, and may send them a second time, with the same ids.
"""

import logging
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from app.jobs import Event
from app.loops import Loop
from app.service.tracing.spans import Span, spans_of
from app.store import JobStore, StoreError

log = logging.getLogger(__name__)
EVERY_SECONDS = 1.0
RETRY_SECONDS = 10.0
STOP_SECONDS = 2.0
SILENT_SECONDS = 180.0  # a turn may wait for the collector's answers, whose time-outs OTEL_* variables set
MOST_WAITING = 2000
MOST_REFUSALS = 3
MOST_EVENTS = 20_000  # of one job, the last: a decode of ten thousand chunks
PAGE = 2000
# Older jobs have been sent before: a process that rebuilds its counters sees all events again.
OLDEST_SECONDS = 900.0


class Takes(Protocol):
    """A collector."""

    def send(self, job_id: str, spans: Sequence[Span]) -> bool:
        """Send a job's spans; return whether they were taken."""
        ...

    def close(self) -> None:
        """Send nothing more; a `send` under way gives up."""
        ...


class Duty(Protocol):
    """Which API process exports what the events tell."""

    @property
    def starting(self) -> bool:
        """Whether it is not known yet."""
        ...

    @property
    def exports_counters(self) -> bool:
        """Whether this process does."""
        ...


@dataclass(slots=True)
class _Ended:
    """A job that ended at `at`. `refusals` counts how often the collector took others, but not this one."""

    at: float
    refusals: int = 0
    sent_before: int = 0


class Traces:
    """Takes events by `apply` and sends the traces of jobs that ended, on a thread of its own."""

    def __init__(self, store: JobStore, collector: Takes, duty: Duty) -> None:
        self._store = store
        self._collector = collector
        self._duty = duty
        self._lock = threading.Lock()
        self._waiting: OrderedDict[str, _Ended] = OrderedDict()  # in the order in which they are tried
        self._sent = self._dropped = 0
        self._failing = False
        self.loop = Loop(
            "traces",
            self._turn,
            every_seconds=EVERY_SECONDS,
            silent_seconds=SILENT_SECONDS,
            retry_seconds=RETRY_SECONDS,
            known=(StoreError,),
        )

    def apply(self, events: Sequence[Event]) -> None:
        """Note the jobs that ended. Called by the thread that reads events."""
        with self._lock:
            for event in events:
                if event.kind == "finished":
                    self._waiting[event.job_id] = _Ended(event.at)
                    self._waiting.move_to_end(event.job_id)
            while len(self._waiting) > MOST_WAITING:
                del self._waiting[min(self._waiting, key=lambda job_id: self._waiting[job_id].at)]
                self._dropped += 1

    def stop(self) -> None:
        """Stop the thread. The next process sees the last events again and sends what was not sent."""
        self.loop.stop()
        self._collector.close()
        self.loop.join(STOP_SECONDS)

    def _turn(self) -> bool:
        if self._duty.starting:
            return False
        self._forget_old()
        if not self._duty.exports_counters:
            return False
        with self._lock:
            job_id, ended = next(iter(self._waiting.items()), ("", _Ended(0.0)))
        if not job_id:
            return False
        spans = spans_of(self._events_of(job_id))
        taken = bool(spans) and self._collector.send(job_id, spans)
        with self._lock:
            if self._waiting.get(job_id) is not ended:  # it has ended once more
                return True
            if taken:
                del self._waiting[job_id]
                self._sent += 1
            elif not spans or self._is_refused(ended):
                del self._waiting[job_id]
                self._dropped += 1
            else:
                self._waiting.move_to_end(job_id)
        if spans:
            self._tell(taken=taken)
        return taken

    def _events_of(self, job_id: str) -> list[Event]:
        """The job's last events."""
        kept: deque[Event] = deque(maxlen=MOST_EVENTS)
        seq = 0
        while page := self._store.events_after(seq, PAGE, job_id):
            kept.extend(page)
            seq = page[-1].seq
        return list(kept)

    def _is_refused(self, ended: _Ended) -> bool:
        """Whether the collector takes others, but not this one: too large for it, for example."""
        if self._sent > ended.sent_before:
            ended.refusals += 1
            ended.sent_before = self._sent
        return ended.refusals >= MOST_REFUSALS

    def _tell(self, *, taken: bool) -> None:
        """Log when the collector begins and ends to refuse."""
        if taken and self._failing:
            log.info("traces_sent_again")
        elif not taken and not self._failing:
            log.warning("traces_not_sent reason=the collector does not take them; trying again")
        self._failing = not taken

    def _forget_old(self) -> None:
        oldest = time.time() - OLDEST_SECONDS
        with self._lock:
            for job_id in [job_id for job_id, ended in self._waiting.items() if ended.at < oldest]:
                del self._waiting[job_id]
                self._dropped += self._failing
            dropped, self._dropped = self._dropped, 0
        if dropped:
            log.warning("traces_dropped jobs=%d", dropped)
