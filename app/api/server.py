"""The HTTP/1.1 server: uvicorn and h11 with limits on time and connections.

A request's head must arrive within `HEAD_SECONDS` and 64 KiB (h11's limit), and its body within the limits of
`app.api.requests.bodies`. At most `MAX_CONNECTIONS` are open. A client that breaks a limit gets a problem
document, and its connection is closed.
"""

import asyncio
from typing import Any

import h11
import uvicorn
from fastapi import FastAPI
from uvicorn.protocols.http.h11_impl import H11Protocol

from app.api.middleware.proxy import BehindProxy
from app.api.problems import Problem

HEAD_SECONDS = 15.0
LINGER_SECONDS = 1.0
MAX_CONNECTIONS = 4000
GRACE_SECONDS = 3
CLOSE = (b"connection", b"close")


class TimedProtocol(H11Protocol):
    """A connection that is closed if a request's head does not arrive in time."""

    _timer: asyncio.TimerHandle | None = None
    _refused = False

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Start the timer for the first request's head, or refuse a connection too many."""
        super().connection_made(transport)
        if len(self.connections) > MAX_CONNECTIONS:
            message = f"{MAX_CONNECTIONS:,} connections are open, which is the limit: try again later"
            self._refuse(Problem(503, "too_many_connections", message))
            return
        self._watch()

    def data_received(self, data: bytes) -> None:
        """Process received bytes. Only a request whose response is in progress stops the timer."""
        if self._refused:
            return
        super().data_received(data)
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop the timer."""
        self._stop_timer()
        super().connection_lost(exc)

    def send_400_response(self, msg: str) -> None:
        """Refuse bytes that are not HTTP and heads that are too long."""
        self._refuse(Problem(400, "bad_request", msg))

    def _watch(self) -> None:
        if self._refused:
            return
        if self.cycle is not None and not self.cycle.response_complete:
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

    def _refuse(self, problem: Problem) -> None:
        """Send the problem document if the connection still allows a response, then close it.

        Closing at once would lose the response for a client that is still sending, so received bytes are
        discarded for `LINGER_SECONDS` first.
        """
        self._stop_timer()
        self._refused = True
        answer = problem.response()
        head = h11.Response(status_code=answer.status_code, headers=[*answer.raw_headers, CLOSE])
        try:
            for event in (head, h11.Data(data=bytes(answer.body)), h11.EndOfMessage()):
                self.transport.write(self.conn.send(event) or b"")
        except h11.LocalProtocolError:
            pass  # an earlier response has already ended the conversation
        self.transport.write_eof()
        self._timer = self.loop.call_later(LINGER_SECONDS, self.transport.close)


def build_server(app: FastAPI, **options: Any) -> uvicorn.Server:
    """Return a server for the app; `options` are passed to uvicorn."""
    config = uvicorn.Config(
        app,
        http=TimedProtocol,
        ws="none",
        log_config=None,
        timeout_graceful_shutdown=GRACE_SECONDS,
        proxy_headers=False,  # `BehindProxy` reads them, and one more
        **options,
    )
    root_path = app.state.service.settings.root_path
    config.app = BehindProxy(app, config.forwarded_allow_ips, root_path, app.state.own_segments)
    return uvicorn.Server(config)
