"""The memory of request bodies: a limit for all together, and a share for each client.

If the memory is full, a body that is still arriving gives way: one of the client that holds most.
"""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager

from app.api.fairness.usage import over_share, too_busy
from app.api.problems import Problem

CLOSE = {"Connection": "close"}


class BodyMemory:
    """The memory of all bodies together. One event loop uses it, so it needs no lock.

    `limit_bytes` is for all clients together, `client_bytes` for each of them; None: no limit of its own.
    """

    def __init__(self, limit_bytes: int, client_bytes: int | None = None) -> None:
        self._limit_bytes = limit_bytes
        self._client_bytes = limit_bytes if client_bytes is None else client_bytes
        self._shares: dict[BodyShare, None] = {}
        self._taken_by: Counter[str] = Counter()
        self.taken_bytes = 0

    def taken_by(self, client: str) -> int:
        """Return the bytes of one client's bodies."""
        return self._taken_by[client]

    @contextmanager
    def share(self, client: str = "") -> Iterator["BodyShare"]:
        """Yield one request's share; it is released at the end of the block."""
        share = BodyShare(self, client)
        self._shares[share] = None
        try:
            yield share
        finally:
            del self._shares[share]
            self.give_back(client, share.taken_bytes)

    def take(self, client: str, count: int) -> None:
        """Reserve bytes. Raises as `make_room`."""
        self.make_room(client, count)
        self.taken_bytes += count
        self._taken_by[client] += count

    def give_back(self, client: str, count: int) -> None:
        """Release bytes."""
        self.taken_bytes -= count
        self._taken_by[client] -= count
        if not self._taken_by[client]:
            del self._taken_by[client]

    def make_room(self, client: str, count: int) -> None:
        """Let other bodies give way until `count` bytes are free.

        Raises problem 429 if the client's share does not allow it, and 503 if there is no room.
        """
        own = self.taken_by(client) + count
        if own > self._client_bytes:
            raise _closing(over_share("bytes of request bodies", own, self._client_bytes))
        while self.taken_bytes + count > self._limit_bytes:
            arriving = [share for share in self._shares if share.is_arriving and share.taken_bytes]
            largest = max(
                arriving, key=lambda each: (self.taken_by(each.client), each.taken_bytes), default=None
            )
            if largest is None or self.taken_by(largest.client) <= own:
                raise _closing(_full(self._limit_bytes))
            largest.give_way(_full(self._limit_bytes))


class BodyShare:
    """The bytes that one request has reserved."""

    def __init__(self, memory: BodyMemory, client: str) -> None:
        self.client = client
        self.taken_bytes = 0
        self._memory = memory
        self._deadline: asyncio.Timeout | None = None
        self._refusal: Problem | None = None

    @property
    def is_arriving(self) -> bool:
        """Whether the body is still being read, so that the request can be refused."""
        return self._deadline is not None and self._refusal is None

    def take(self, count: int) -> None:
        """Reserve bytes. Raises as `BodyMemory.make_room`."""
        if self._refusal is not None:
            raise self._refusal
        self._memory.take(self.client, count)
        self.taken_bytes += count

    @asynccontextmanager
    async def reading(self, seconds: float) -> AsyncIterator[None]:
        """Read the body within the block. Raises `TimeoutError` after `seconds`, and problem 503 if the body
        had to give way.
        """
        try:
            async with asyncio.timeout(seconds) as self._deadline:
                yield
        except TimeoutError:
            if self._refusal is not None:
                raise self._refusal from None
            raise
        finally:
            self._deadline = None

    def give_way(self, refusal: Problem) -> None:
        """Release the bytes and end the reading with this problem."""
        assert self._deadline is not None, "only a body that is being read can give way"
        self._refusal = _closing(refusal)
        self._memory.give_back(self.client, self.taken_bytes)
        self.taken_bytes = 0
        self._deadline.reschedule(asyncio.get_running_loop().time())


def _full(limit_bytes: int) -> Problem:
    return too_busy(f"too many large requests are being received, and their limit is {limit_bytes:,} bytes")


def _closing(problem: Problem) -> Problem:
    problem.headers.update(CLOSE)
    return problem
