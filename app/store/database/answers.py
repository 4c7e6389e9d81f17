"""A limit on how long a PostgreSQL server may be silent within a call.

The server's own limits end a statement that takes too long, and the kernel's limits a peer that is gone. A
server whose processes are stopped is neither: its kernel still confirms what it receives. Imported only where
PostgreSQL is used, because the driver is an extra.
"""

import re
import time
from collections.abc import Generator
from typing import Any, TypeVar

import psycopg

T = TypeVar("T")
# Longer than the server's own limit of a statement: a server that works says itself what took too long.
LONGER_SECONDS = 5.0


class TimedConnection(psycopg.Connection[Any]):
    """A connection that ends with `OperationalError` if the server does not answer in time."""

    answer_seconds: float | None = None

    def __del__(self, *_: Any) -> None:
        """Say nothing: a pool lets go of connections to a server that is gone, and they close themselves."""

    def wait(self, gen: Generator[Any, Any, T], *args: Any, **kwargs: Any) -> T:
        """Run a call of the driver; as `psycopg.Connection.wait`."""
        if self.answer_seconds is None:
            return super().wait(gen, *args, **kwargs)
        try:
            return super().wait(_limited(gen, self.answer_seconds), *args, **kwargs)
        except _Silent as error:
            self.pgconn.finish()  # it may still answer: to a question that nobody asks any more
            raise psycopg.OperationalError(str(error)) from None


class _Silent(Exception):
    """The server has not answered in time."""


def _limited(gen: Generator[Any, Any, T], seconds: float) -> Generator[Any, Any, T]:
    deadline = time.monotonic() + seconds
    try:
        wanted = next(gen)
        while True:
            ready = yield wanted
            if not ready and time.monotonic() > deadline:
                raise _Silent(f"the server did not answer within {seconds:g} seconds")
            wanted = gen.send(ready)
    except StopIteration as end:
        result: T = end.value
        return result


def answer_seconds(options: str) -> float | None:
    """Return the limit for sessions that libpq opens with these options; None if statements have none."""
    limits = re.findall(r"statement_timeout=(\w+)", options)
    if not limits or not limits[-1].isdigit() or limits[-1] == "0":
        return None  # with a unit: it was chosen by whoever wrote the database's address
    return int(limits[-1]) / 1000 + LONGER_SECONDS
