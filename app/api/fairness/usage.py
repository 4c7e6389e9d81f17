"""Says which client goes first, and refuses what is beyond a client's share. Deciding only, no waiting."""

import math
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from app.api.problems import Problem

HALF_LIFE_SECONDS = 10.0
FORGOTTEN_BELOW_SECONDS = 1e-4
MOST_REMEMBERED = 4096
RETRY_AFTER = {"Retry-After": "2"}


class Usage:
    """The seconds of service that each client has used lately; a second counts half after ten.

    Of two clients that wait, the one that has used less goes first.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._used: dict[str, tuple[float, float]] = {}

    def of(self, client: str) -> float:
        """Return the client's seconds."""
        with self._lock:
            return self._now(client, self._clock())

    def charge(self, client: str, seconds: float) -> None:
        """Add seconds to the client's."""
        with self._lock:
            now = self._clock()
            self._used[client] = (self._now(client, now) + seconds, now)
            if len(self._used) > MOST_REMEMBERED:
                self._used = {
                    each: (used, now)
                    for each in self._used
                    if (used := self._now(each, now)) > FORGOTTEN_BELOW_SECONDS
                }

    def _now(self, client: str, now: float) -> float:
        seconds, at = self._used.get(client, (0.0, now))
        return seconds * math.exp2((at - now) / HALF_LIFE_SECONDS)


class Shares:
    """Counts what each client holds of one resource, such as open event streams.

    `limit` is for all clients together, `share` for each of them. Used in one event loop, so without a lock.
    """

    def __init__(self, resource: str, limit: int, share: int) -> None:
        self._resource = resource
        self._limit = limit
        self._share = share
        self._held: Counter[str] = Counter()

    @contextmanager
    def hold(self, client: str) -> Iterator[None]:
        """Hold one for the block. Raises problem 429 beyond the client's share, and 503 beyond the limit."""
        if self._held[client] >= self._share:
            raise over_share(self._resource, self._held[client], self._share)
        if self._held.total() >= self._limit:
            raise too_busy(f"{self._held.total():,} {self._resource} are open, which is the limit")
        self._held[client] += 1
        try:
            yield
        finally:
            self._held[client] -= 1
            if not self._held[client]:
                del self._held[client]


def share_of(limit: int, share: float) -> int:
    """Return how many of `limit` one client may hold: at least one."""
    return max(1, min(limit, math.floor(limit * share)))


def over_share(resource: str, used: int, limit: int) -> Problem:
    """Return the refusal of what is beyond a client's share."""
    message = f"this client has {used:,} {resource}, and one client may have {limit:,}: try again later"
    data = {"resource": resource, "used": used, "limit": limit}
    return Problem(429, "client_share_reached", message, headers=RETRY_AFTER, data=data)


def too_busy(reason: str) -> Problem:
    """Return the refusal of what the service has no room for."""
    return Problem(503, "busy", f"{reason}: try again in 2 seconds", headers=RETRY_AFTER)
