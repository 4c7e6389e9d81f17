"""Gives requests their turns: few run at once, and the client that has used the least goes first.

Requests that submit jobs go before all others: reads are many, and can be repeated.

One client has at most its share of the turns, and of the places to wait for one. Used in one event loop; only
`RequestTurn.give_back` may be called from any thread. Knows no HTTP.
"""

import asyncio
import time
from collections import deque
from contextvars import ContextVar

from app.api.fairness.usage import Usage, over_share, share_of, too_busy

# More threads that compute at once only take the interpreter from each other and from the event loop.
TURNS = 16
# A request takes the event loop for about a millisecond, and health checks wait for the loop meanwhile: of a
# burst of requests, only so many begin in one round of the loop.
STARTS_AT_ONCE = 4
WAITING = 512
WAIT_SECONDS = 20.0


class Turns:
    """The turns of all requests, and those that wait for one."""

    def __init__(self, usage: Usage, share: float, *, limit: int = TURNS, waiting: int = WAITING) -> None:
        self._usage = usage
        self._limit = limit
        self._share = share_of(limit, share)
        self._waiting_limit = waiting
        self._waiting_share = share_of(waiting, share)
        self._started_in_round = 0
        self._running: dict[str, int] = {}
        self._waiting: dict[tuple[str, bool], deque[asyncio.Future[None]]] = {}

    @property
    def running(self) -> int:
        """The number of turns that are held."""
        return sum(self._running.values())

    @property
    def waiting(self) -> int:
        """The number of requests that wait for a turn."""
        return sum(map(len, self._waiting.values()))

    async def take(self, client: str, *, submits: bool = False) -> None:
        """Wait for a turn. Requests that submit a job go before all others.

        Raises problem 429 if too many requests of this client wait already, and 503 if too many do in all or
        if no turn comes in time.
        """
        if not self._waiting and self._is_free() and self._running.get(client, 0) < self._share:
            self._start(client)
            return
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._place(client, submits).append(future)
        self._hand_out()
        try:
            async with asyncio.timeout(WAIT_SECONDS):
                await future
        except BaseException as error:
            self._forget((client, submits), future)
            if isinstance(error, TimeoutError):
                raise too_busy(f"no turn came within {WAIT_SECONDS:.0f} seconds") from None
            raise

    def end(self, client: str, seconds: float) -> None:
        """Charge the client for its turn, and give the turn to the next request that waits."""
        self._usage.charge(client, seconds)
        self._running[client] -= 1
        if not self._running[client]:
            del self._running[client]
        self._hand_out()

    def _is_free(self) -> bool:
        return self.running < self._limit and self._started_in_round < STARTS_AT_ONCE

    def _start(self, client: str) -> None:
        if not self._started_in_round:
            asyncio.get_running_loop().call_soon(self._begin_round)
        self._started_in_round += 1
        self._running[client] = self._running.get(client, 0) + 1

    def _begin_round(self) -> None:
        self._started_in_round = 0
        self._hand_out()

    def _waiting_of(self, client: str) -> int:
        return sum(len(self._waiting.get((client, submits), ())) for submits in (True, False))

    def _place(self, client: str, submits: bool) -> deque[asyncio.Future[None]]:
        """Return the client's queue, with room for one more."""
        own = self._waiting_of(client)
        if own >= self._waiting_share:
            raise over_share("waiting requests", own, self._waiting_share)
        waiting = self.waiting
        if waiting >= self._waiting_limit:
            refusal = too_busy(f"{waiting:,} requests wait, which is the limit")
            largest = max(self._waiting, key=lambda each: (self._waiting_of(each[0]), not each[1]))
            if self._waiting_of(largest[0]) <= own + 1:
                raise refusal
            self._next(largest, last=True).set_exception(refusal)
        return self._waiting.setdefault((client, submits), deque())

    def _next(self, key: tuple[str, bool], *, last: bool = False) -> "asyncio.Future[None]":
        """Take the first request, or the last one, from a queue."""
        queue = self._waiting[key]
        future = queue.pop() if last else queue.popleft()
        if not queue:
            del self._waiting[key]
        return future

    def _forget(self, key: tuple[str, bool], future: "asyncio.Future[None]") -> None:
        """Take back the place, or the turn, of a request that does not wait any more."""
        queue = self._waiting.get(key, deque())
        if future in queue:
            queue.remove(future)
            if not queue:
                del self._waiting[key]
        elif future.done() and not future.cancelled() and future.exception() is None:
            self.end(key[0], 0)

    def _hand_out(self) -> None:
        """Give free turns to waiting requests, of the client that has used the least first."""
        while self._waiting and self._is_free():
            able = [each for each in self._waiting if self._running.get(each[0], 0) < self._share]
            if not able:
                return
            key = min(able, key=lambda each: (not each[1], self._usage.of(each[0])))
            future = self._next(key)
            if not future.done():
                self._start(key[0])
                future.set_result(None)


class RequestTurn:
    """One request's turn, which can be taken again after it has ended. Its time is charged to the client."""

    def __init__(self, turns: Turns, client: str, *, submits: bool = False) -> None:
        self._turns = turns
        self._client = client
        self._submits = submits
        self._loop = asyncio.get_running_loop()
        self._since: float | None = None
        _current.set(self)

    async def take(self) -> None:
        """As `Turns.take`."""
        await self._turns.take(self._client, submits=self._submits)
        self._since = time.monotonic()

    def end(self) -> None:
        """Give the turn to others, unless it has ended already."""
        if self._since is not None:
            seconds, self._since = time.monotonic() - self._since, None
            self._turns.end(self._client, seconds)

    def give_back(self) -> None:
        """End the turn from any thread."""
        self._loop.call_soon_threadsafe(self.end)


_current: ContextVar[RequestTurn | None] = ContextVar("turn", default=None)


def current_turn() -> RequestTurn | None:
    """Return the turn of the request that this task or thread serves."""
    return _current.get()
