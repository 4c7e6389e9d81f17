"""Sends the trace of each job that ends. Of several API processes, the one that exports the counters does it.

A job whose trace the collector does not take stays here and is tried again. A restarted process sees the last
jobs again, and may send them a second time, with the same ids.
"""

import logging
import threading
import time
from collections import OrderedDict
from collections.abc import Sequence
from typing import Protocol

from app.jobs import Event
from app.loops import Loop
from app.service.tracing.spans import Span, spans_of
from app.store import JobStore, StoreError

log = logging.getLogger(__name__)
EVERY_SECONDS = 1.0
RETRY_SECONDS = 10.0
STOP_SECONDS = 5.0
SILENT_SECONDS = 180.0  # a turn may wait for the collector's answers, whose time-outs OTEL_* variables set
MOST_WAITING = 2000
MOST_EVENTS = 20_000  # of one job: a decode of ten thousand chunks
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


class Traces:
    """Takes events by `apply` and sends the traces of jobs that ended, on a thread of its own."""

    def __init__(self, store: JobStore, collector: Takes, duty: Duty) -> None:
        self._store = store
        self._collector = collector
        self._duty = duty
        self._lock = threading.Lock()
        self._waiting: OrderedDict[str, float] = OrderedDict()  # when each job ended, the first first
        self._dropped = 0
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
                    self._waiting[event.job_id] = event.at
                    self._waiting.move_to_end(event.job_id)
            while len(self._waiting) > MOST_WAITING:
                self._waiting.popitem(last=False)
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
            job_id, ended_at = next(iter(self._waiting.items()), ("", 0.0))
        if not job_id:
            return False
        spans = spans_of(self._store.events_after(0, MOST_EVENTS, job_id))
        if spans and not self._collector.send(job_id, spans):
            if not self._failing:
                log.warning("traces_not_sent reason=the collector does not take them; trying again")
            self._failing = True
            return False
        if self._failing:
            log.info("traces_sent_again")
        self._failing = False
        with self._lock:
            if self._waiting.get(job_id) == ended_at:  # else it has ended once more
                del self._waiting[job_id]
        return True

    def _forget_old(self) -> None:
        oldest = time.time() - OLDEST_SECONDS
        with self._lock:
            while self._waiting and next(iter(self._waiting.values())) < oldest:
                self._waiting.popitem(last=False)
                self._dropped += self._failing
            dropped, self._dropped = self._dropped, 0
        if dropped:
            log.warning("traces_dropped jobs=%d", dropped)
