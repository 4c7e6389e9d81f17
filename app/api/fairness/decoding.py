"""Places to decode large pictures, for threads: few at once, and the client that has used the least goes
first.

A thread that waits has given its request's turn back. At most `WAITING` threads wait, one client's share of
them at most; if all places are taken, a client that has most of them gives one up.
"""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from app.api.fairness.clients import current_client
from app.api.fairness.turns import current_turn
from app.api.fairness.usage import Usage, over_share, share_of, too_busy

WAITING = 32
WAIT_SECONDS = 30.0


@dataclass(eq=False, slots=True)
class _Waiting:
    client: str
    woken: threading.Event = field(default_factory=threading.Event)
    admitted: bool = False


class Places:
    """`at_once` places for work of one kind, such as decoding large pictures."""

    def __init__(
        self, work: str, at_once: int, usage: Usage, share: float, *, waiting: int = WAITING
    ) -> None:
        self._work = work
        self._free = at_once
        self.threads = at_once + waiting  # the most that hold a place or wait for one
        self._usage = usage
        self._limit = waiting
        self._share = share_of(waiting, share)
        self._lock = threading.Lock()
        self._waiting: list[_Waiting] = []

    @contextmanager
    def hold(self) -> Iterator[None]:
        """Hold a place for the block, as the client of this thread's request.

        Raises problem 429 if too many requests of this client wait already, and 503 if too many do in all or
        if no place comes in time.
        """
        client = current_client()
        self._enter(client)
        started = time.monotonic()
        try:
            yield
        finally:
            self._usage.charge(client, time.monotonic() - started)
            with self._lock:
                self._free += 1
                self._hand_out()

    @property
    def waiting(self) -> int:
        """The number of threads that wait."""
        return len(self._waiting)

    def _enter(self, client: str) -> None:
        with self._lock:
            if self._free and not self._waiting:
                self._free -= 1
                return
            one = self._queued(client)
        turn = current_turn()
        if turn is not None:
            turn.give_back()
        came = one.woken.wait(WAIT_SECONDS)
        with self._lock:
            if one.admitted:
                return
            if one in self._waiting:
                self._waiting.remove(one)
        if came:
            raise too_busy(f"too many requests wait for {self._work}")
        raise too_busy(f"no place for {self._work} came free within {WAIT_SECONDS:.0f} seconds")

    def _queued(self, client: str) -> _Waiting:
        own = self._of(client)
        if own >= self._share:
            raise over_share(f"requests that wait for {self._work}", own, self._share)
        if len(self._waiting) >= self._limit:
            largest = max({each.client for each in self._waiting}, key=self._of)
            if self._of(largest) <= own + 1:
                raise too_busy(f"{len(self._waiting)} requests wait for {self._work}, which is the limit")
            last = next(each for each in reversed(self._waiting) if each.client == largest)
            self._waiting.remove(last)
            last.woken.set()
        one = _Waiting(client)
        self._waiting.append(one)
        return one

    def _of(self, client: str) -> int:
        return sum(each.client == client for each in self._waiting)

    def _hand_out(self) -> None:
        while self._free and self._waiting:
            one = min(self._waiting, key=lambda each: self._usage.of(each.client))
            self._waiting.remove(one)
            self._free -= 1
            one.admitted = True
            one.woken.set()
