"""One poller of the events table for all listeners of a process.

A thread reads new events and passes them to the metrics and to every open stream. A stream whose client reads
too slowly is closed; the client reconnects and reads the events it missed from the table.
"""

import asyncio
import logging
import threading
import time
from collections.abc import AsyncIterator, Callable, Hashable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

from app.jobs import Event
from app.loops import Loop
from app.store import JobStore, StoreError

log = logging.getLogger(__name__)
PAGE = 1000
MAX_PENDING = 2000
# Between so many listeners the event loop gets time for other requests.
LISTENERS_AT_ONCE = 16
PAUSE_SECONDS = 0.005
SILENT_SECONDS = 8.0
STOP_SECONDS = 10.0

T = TypeVar("T")
Consumer = Callable[[Sequence[Event]], None]


@dataclass(eq=False, slots=True)
class Subscription:
    """The events that one listener has not read yet; `job_id` None selects the events of every job."""

    job_id: str | None
    loop: asyncio.AbstractEventLoop
    pending: asyncio.Queue[Event | None] = field(default_factory=lambda: asyncio.Queue(MAX_PENDING))

    def put(self, events: Sequence[Event]) -> None:
        """Queue events for the listener; end it if its queue is full. Runs in the listener's event loop."""
        for event in events:
            if self.job_id is not None and event.job_id != self.job_id:
                continue
            if self.pending.full():
                self.end()
                return
            self.pending.put_nowait(event)

    def end(self) -> None:
        """Stop the listener and drop the events it has not read."""
        while not self.pending.empty():
            self.pending.get_nowait()
        self.pending.put_nowait(None)


class Position(Protocol):
    """Where the consumers are in the events table; its methods are called by the feed's thread."""

    def begin(self) -> int:
        """Return the number of the last event that the consumers know."""
        ...

    def turn(self, seen: int, *, at_end: bool) -> int:
        """Note that the consumers know the events up to `seen`; return the number to go on after."""
        ...

    def close(self, seen: int) -> None:
        """Note that no further events follow."""
        ...


class EventFeed:
    """Follows the events table from `position`. Start it once, before the first subscription."""

    def __init__(
        self, store: JobStore, consumers: Sequence[Consumer], position: Position, *, poll_seconds: float
    ) -> None:
        self._store = store
        self._position = position
        self._consumers = consumers
        self._seen: int | None = None
        self._subscriptions: set[Subscription] = set()
        self._lock = threading.Lock()
        self._made: dict[Hashable, Any] = {}  # used in the listeners' event loop
        self._caught_up = threading.Event()
        self.loop = Loop(
            "event-feed",
            self._turn,
            every_seconds=poll_seconds,
            silent_seconds=SILENT_SECONDS,
            known=(StoreError,),
        )

    def start(self) -> None:
        """Start the thread."""
        self.loop.start()

    @property
    def caught_up(self) -> bool:
        """Whether the consumers have received every event from before this process started."""
        return self._caught_up.is_set()

    def stop(self) -> None:
        """Stop the thread and end every stream."""
        self.loop.stop()
        self.loop.join(STOP_SECONDS)
        if self._seen is not None:
            self._position.close(self._seen)
        for subscription in self._current():
            subscription.loop.call_soon_threadsafe(subscription.end)

    @asynccontextmanager
    async def subscribe(self, job_id: str | None) -> AsyncIterator[Subscription]:
        """Yield a subscription to events found from now on.

        Read earlier events from the table after subscribing, so that none is missed.
        """
        subscription = Subscription(job_id, asyncio.get_running_loop())
        with self._lock:
            self._subscriptions.add(subscription)
        try:
            yield subscription
        finally:
            with self._lock:
                self._subscriptions.discard(subscription)

    def once(self, event: Event, variant: Hashable, make: Callable[[], T]) -> T:
        """Return what `make` returns, made once for all listeners of the same event and variant."""
        key = (event.seq, variant)
        if key not in self._made:
            if len(self._made) >= MAX_PENDING:
                self._made.clear()
            self._made[key] = make()
        made: T = self._made[key]
        return made

    def _current(self) -> list[Subscription]:
        with self._lock:
            return list(self._subscriptions)

    def _turn(self) -> bool:
        if self._seen is None:
            self._seen = self._position.begin()
        events = self._store.events_after(seq=self._seen, limit=PAGE)
        if events:
            # Counted first: a page is never published twice, whatever happens to it.
            self._seen = events[-1].seq
            self._publish(events)
        at_end = len(events) < PAGE
        self._seen = self._position.turn(self._seen, at_end=at_end)
        if not at_end:
            return True
        self._caught_up.set()
        return False

    def _publish(self, events: Sequence[Event]) -> None:
        for consumer in self._consumers:
            try:
                consumer(events)
            except Exception:
                log.exception("event_consumer_failed")
        for number, subscription in enumerate(self._current(), 1):
            try:
                subscription.loop.call_soon_threadsafe(subscription.put, events)
            except RuntimeError:
                log.debug("event_listener_closed")
            if number % LISTENERS_AT_ONCE == 0:
                time.sleep(PAUSE_SECONDS)
