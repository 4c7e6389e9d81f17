"""The HTTP/1.1 server: uvicorn and h11 with limits on time and connections.

A request's head must arrive within `HEAD_SECONDS` and 64 KiB (h11's limit), and its body within the limits of
`app.api.requests.bodies`. A client that reads nothing of a response for `WRITE_SECONDS` is cut off. At most
`MAX_CONNECTIONS` are open, fewer if the limit of open files is low; `app.api.fairness.connections` says
which of them give way. A client that breaks a limit gets a problem document, and its connection is closed.
"""

import asyncio
import logging
import socket
import struct
import sys
import time
from collections.abc import Callable
from typing import Any

import h11
import uvicorn
from fastapi import FastAPI
from uvicorn.protocols.http.h11_impl import H11Protocol

from app.api.fairness.clients import client_at
from app.api.fairness.connections import (
    REPORT_SECONDS,
    Connections,
    connections_within,
    raise_file_limit,
)
from app.api.fairness.usage import share_of
from app.api.middleware.proxy import BehindProxy
from app.api.problems import Problem

log = logging.getLogger(__name__)
HEAD_SECONDS = 15.0
WRITE_SECONDS = 30.0
# What a client must at least read in that time, unless less is left to read.
WRITE_BYTES = 4096
LINGER_SECONDS = 1.0
# Refused connections that are open for the time above; further ones are closed without a document.
MOST_LINGERING = 64
MAX_CONNECTIONS = 4000
# Connections that are accepted in one turn of the event loop, which serves no request meanwhile.
BACKLOG = 128
GRACE_SECONDS = 3
# Python's default lets each thread that computes hold the event loop up for 5 ms.
SWITCH_SECONDS = 0.001
CLOSE = (b"connection", b"close")


class TimedProtocol(H11Protocol):
    """A connection that is closed if a request's head does not arrive in time, or a response is not read."""

    _timer: asyncio.TimerHandle | None = None
    _write_timer: asyncio.TimerHandle | None = None
    _refused = False
    _resumed = False
    _unread_bytes = 0

    def __init__(self, table: Connections, is_proxy: Callable[[str | None], bool], **options: Any) -> None:
        super().__init__(**options)
        self._table = table
        self._is_proxy = is_proxy
        # Requests find their connection in their state, to name the client that it belongs to.
        self.app_state = {**self.app_state, "connection": self}

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Start the timer for the first request's head, or refuse a connection too many."""
        super().connection_made(transport)
        host = self.client[0] if self.client else None
        try:
            self._table.open(self, client_at(host), shared=self._is_proxy(host))
        except Problem as problem:
            self._refuse(problem)
            return
        self._watch()

    def data_received(self, data: bytes) -> None:
        """Process received bytes. Only a request whose response is in progress stops the timer."""
        if self._refused:
            return
        super().data_received(data)
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop the timers."""
        self._table.close(self)
        self._stop_timer()
        if self._write_timer is not None:
            self._write_timer.cancel()
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        """Wait until the client has read; the buffer is full."""
        super().pause_writing()
        self._watch_writing()

    def resume_writing(self) -> None:
        """Go on."""
        self._resumed = True
        super().resume_writing()

    def on_response_complete(self) -> None:
        """Wait for the next request, and until the client has read what is left of the response."""
        self._table.waits(self)
        self._watch_writing()
        super().on_response_complete()
        if not self.cycle.response_complete:  # the client had sent the next request already
            self._table.serves(self)

    def belongs_to(self, client: str) -> None:
        """Count this connection as the client's. Raises `Problem` if the client has its share of them."""
        self._table.belongs_to(self, client)

    def give_way(self) -> None:
        """Close at once, and drop what the client has not read."""
        connection = self.transport.get_extra_info("socket")
        if connection is not None:  # else the system would keep what is unread until the client reads it
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.transport.abort()

    def send_400_response(self, msg: str) -> None:
        """Refuse bytes that are not HTTP and heads that are too long."""
        self._refuse(Problem(400, "bad_request", msg))

    def _watch(self) -> None:
        if self._refused:
            return
        if self.cycle is not None and not self.cycle.response_complete:
            self._table.serves(self)
            self._stop_timer()
        elif self._timer is None:
            self._timer = self.loop.call_later(HEAD_SECONDS, self._too_slow)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _too_slow(self) -> None:
        self._timer = None
        if self.transport.is_closing() or (self.cycle is not None and not self.cycle.response_complete):
            return
        message = f"the request's head did not arrive within {HEAD_SECONDS:.0f} seconds"
        self._refuse(Problem(408, "head_too_slow", message))

    def _watch_writing(self) -> None:
        if self._write_timer is None and self.transport.get_write_buffer_size():
            self._unread_bytes = self.transport.get_write_buffer_size()
            self._resumed = False
            self._write_timer = self.loop.call_later(WRITE_SECONDS, self._check_writing)

    def _check_writing(self) -> None:
        self._write_timer = None
        unread_bytes = self.transport.get_write_buffer_size()
        if unread_bytes and not self._resumed and self._unread_bytes - unread_bytes < WRITE_BYTES:
            host = self.client[0] if self.client else None
            log.info("response_not_read client=%s unread_bytes=%d", client_at(host), unread_bytes)
            self.give_way()
            return
        self._watch_writing()

    def _refuse(self, problem: Problem) -> None:
        """Send the problem document if the connection still allows a response, then close it.

        Closing at once would lose the response for a client that is still sending, so received bytes are
        discarded for `LINGER_SECONDS` first.
        """
        self._stop_timer()
        self._refused = True
        self._table.close(self)
        if len(self.connections) - len(self._table) > MOST_LINGERING:
            self.transport.abort()
            return
        answer = problem.response()
        head = h11.Response(status_code=answer.status_code, headers=[*answer.raw_headers, CLOSE])
        try:
            for event in (head, h11.Data(data=bytes(answer.body)), h11.EndOfMessage()):
                self.transport.write(self.conn.send(event) or b"")
        except h11.LocalProtocolError:
            pass  # an earlier response has already ended the conversation
        self.transport.write_eof()
        self._timer = self.loop.call_later(LINGER_SECONDS, self.transport.abort)


class Server(uvicorn.Server):
    """uvicorn's server; if the system has no file for a connection, it says so once a minute."""

    _next_report = 0.0

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start listening."""
        asyncio.get_running_loop().set_exception_handler(self._on_error)
        sys.setswitchinterval(SWITCH_SECONDS)
        await super().startup(sockets)

    def _on_error(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        error = context.get("exception")
        if not isinstance(error, OSError) or "accept" not in context.get("message", ""):
            loop.default_exception_handler(context)
        elif time.monotonic() >= self._next_report:
            self._next_report = time.monotonic() + REPORT_SECONDS
            log.error("connections_not_accepted reason=%s", error.strerror)


def build_server(app: FastAPI, **options: Any) -> Server:
    """Return a server for the app; `options` are passed to uvicorn."""
    settings = app.state.service.settings
    limit = connections_within(raise_file_limit(), MAX_CONNECTIONS)
    table = Connections(limit, share_of(limit, settings.client_share))

    def protocol(**given: Any) -> TimedProtocol:
        return TimedProtocol(table, proxy.trusts, **given)

    config = uvicorn.Config(
        app,
        http=protocol,  # type: ignore[arg-type]
        ws="none",
        log_config=None,
        timeout_graceful_shutdown=GRACE_SECONDS,
        proxy_headers=False,  # `BehindProxy` reads them, and one more
        backlog=BACKLOG,
        **options,
    )
    proxy = BehindProxy(app, config.forwarded_allow_ips, settings.root_path, app.state.own_segments)
    config.app = proxy
    return Server(config)
