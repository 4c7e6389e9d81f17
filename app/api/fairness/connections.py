"""The open connections by client, and which of them gives way when there are too many.

If a client has its share of connections, or the service all that it can hold, the longest idle connection
gives way to the new one. Without an idle one, the new connection is refused. Also holds the limit of open
files, which bounds them. Knows no sockets.
"""

import logging
import resource
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

from app.api.fairness.usage import RETRY_AFTER, over_share
from app.api.problems import Problem

log = logging.getLogger(__name__)
REPORT_SECONDS = 60.0
# The database's connections (three files each), pictures' decoders, logs, listening sockets.
OTHER_FILES = 256
FILES_OF_CONNECTION = 2  # its socket, and the video that it is sent
FEWEST = 16


class Connection(Protocol):
    """One connection."""

    def give_way(self) -> None:
        """Close at once."""
        ...


@dataclass(slots=True)
class _Open:
    """A client's connections, the longest idle and the oldest busy one first."""

    idle: dict[Connection, None] = field(default_factory=dict)
    busy: dict[Connection, None] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.idle) + len(self.busy)


class Connections:
    """All connections of a process; used in its event loop only.

    `limit` is for all clients together, `share` for each of them.
    """

    def __init__(self, limit: int, share: int, clock: Callable[[], float] = time.monotonic) -> None:
        self.limit = limit
        self.share = share
        self._open: dict[str, _Open] = {}
        self._client_of: dict[Connection, str] = {}
        self._clock = clock
        self._next_report = clock()
        self._refused = self._closed = 0

    def __len__(self) -> int:
        return len(self._client_of)

    def open(self, connection: Connection, client: str, *, shared: bool = False) -> None:
        """Add an idle connection, after closing another one if that makes room.

        `shared`: it comes from a proxy with many clients, so that no share applies before a request names
        its client. Raises problem 429 or 503 if there is no room.
        """
        if not shared:
            self._keep_share(client)
        if len(self) >= self.limit and not self._make_room(client):
            self._count(client, refused=True)
            message = f"{len(self):,} connections are open, which is the limit: try again later"
            data = {"used": len(self), "limit": self.limit}
            raise Problem(503, "too_many_connections", message, headers=RETRY_AFTER, data=data)
        self._add(connection, client)

    def belongs_to(self, connection: Connection, client: str) -> None:
        """Count an open connection as the client's that sends a request on it. Raises problem 429."""
        before = self._client_of.get(connection)
        if before in (client, None):
            return
        self._keep_share(client)
        busy = connection in self._open[before].busy if before else False
        self.close(connection)
        self._add(connection, client)
        if busy:
            self.serves(connection)

    def serves(self, connection: Connection) -> None:
        """A request has arrived on the connection."""
        self._move(connection, idle=False)

    def waits(self, connection: Connection) -> None:
        """The connection's response is complete."""
        self._move(connection, idle=True)

    def close(self, connection: Connection) -> None:
        """Remove a connection; nothing happens if it was removed before."""
        client = self._client_of.pop(connection, None)
        if client is None:
            return
        of_client = self._open[client]
        of_client.idle.pop(connection, None)
        of_client.busy.pop(connection, None)
        if not of_client:
            del self._open[client]

    def _count_of(self, client: str) -> int:
        return len(self._open[client]) if client in self._open else 0

    def _add(self, connection: Connection, client: str) -> None:
        self._client_of[connection] = client
        self._open.setdefault(client, _Open()).idle[connection] = None

    def _move(self, connection: Connection, *, idle: bool) -> None:
        client = self._client_of.get(connection)
        if client is None:
            return
        of_client = self._open[client]
        source, target = (of_client.busy, of_client.idle) if idle else (of_client.idle, of_client.busy)
        if connection in source:
            del source[connection]
            target[connection] = None

    def _keep_share(self, client: str) -> None:
        own = self._count_of(client)
        if own >= self.share and not self._close_idle(client):
            self._count(client, refused=True)
            raise over_share("connections", own, self.share)

    def _make_room(self, newcomer: str) -> bool:
        """Close a connection of the client that has most: an idle one, or any if the newcomer has fewer."""
        largest = max(self._open, key=self._count_of)
        if self._close_idle(largest):
            return True
        if self._count_of(largest) <= self._count_of(newcomer) + 1:
            return False
        return self._close_one(largest, next(iter(self._open[largest].busy)))

    def _close_idle(self, client: str) -> bool:
        idle = self._open[client].idle
        return bool(idle) and self._close_one(client, next(iter(idle)))

    def _close_one(self, client: str, connection: Connection) -> bool:
        self.close(connection)
        connection.give_way()
        self._count(client, refused=False)
        return True

    def _count(self, client: str, *, refused: bool) -> None:
        """Count, and write one line of the log a minute."""
        self._refused += refused
        self._closed += not refused
        now = self._clock()
        if now < self._next_report:
            return
        log.warning(
            "connections_full open=%d limit=%d share=%d refused=%d closed=%d client=%s",
            len(self),
            self.limit,
            self.share,
            self._refused,
            self._closed,
            client,
        )
        self._next_report = now + REPORT_SECONDS
        self._refused = self._closed = 0


def raise_file_limit() -> int:
    """Raise the soft limit of open files to the hard one; return the limit that holds now."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        except (OSError, ValueError):  # a hard limit of "infinity" that the kernel does not take
            return int(soft)
    return int(hard)


def connections_within(files: int, most: int) -> int:
    """Return how many connections may be open under a limit of open files, at most `most`."""
    if files == resource.RLIM_INFINITY:
        return most
    return min(most, max(FEWEST, (files - OTHER_FILES) // FILES_OF_CONNECTION))
