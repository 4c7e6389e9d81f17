"""The server under the routes: HTTP/1.1 by uvicorn and h11, with an end to what a client may hold open.

A request's head must come within `HEAD_SECONDS` and within 64 KiB (h11's limit); a body within the limits of
`bodies`. There are at most `MAX_CONNECTIONS`. Whoever breaks a rule gets a problem document, then the end.
"""

import asyncio
from typing import Any

import h11
import uvicorn
from fastapi import FastAPI
from uvicorn.protocols.http.h11_impl import H11Protocol

from app.api.problems import Problem

HEAD_SECONDS = 15.0
LINGER_SECONDS = 1.0
MAX_CONNECTIONS = 4000
GRACE_SECONDS = 3
CLOSE = (b"connection", b"close")


class TimedProtocol(H11Protocol):
    """A connection that is closed when it is silent, or dribbles, while no answer is being made."""

    _timer: asyncio.TimerHandle | None = None
    _refused = False

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin to wait for a request's head."""
        super().connection_made(transport)
        if len(self.connections) > MAX_CONNECTIONS:
            self._refuse(Problem(503, "too_many_connections", "the service holds too many connections"))
            return
        self._watch()

    def data_received(self, data: bytes) -> None:
        """Take what came; what belongs to no request that is being answered does not stop the clock."""
        if self._refused:
            return
        super().data_received(data)
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop the clock."""
        self._stop_timer()
        super().connection_lost(exc)

    def send_400_response(self, msg: str) -> None:
        """Answer what is no HTTP, or has too long a head."""
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
        """Send the document where an answer is still possible, and close.

        A client that is still sending would lose the answer with the connection: what it sends is thrown away
        for a moment first.
        """
        self._stop_timer()
        self._refused = True
        answer = problem.response()
        head = h11.Response(status_code=answer.status_code, headers=[*answer.raw_headers, CLOSE])
        try:
            for event in (head, h11.Data(data=bytes(answer.body)), h11.EndOfMessage()):
                self.transport.write(self.conn.send(event) or b"")
        except h11.LocalProtocolError:
            pass  # the answer to an earlier request was the last thing that could be said
        self.transport.write_eof()
        self._timer = self.loop.call_later(LINGER_SECONDS, self.transport.close)


def build_server(app: FastAPI, **options: Any) -> uvicorn.Server:
    """A server for the app; `options` are uvicorn's."""
    config = uvicorn.Config(
        app,
        http=TimedProtocol,
        ws="none",
        log_config=None,
        timeout_graceful_shutdown=GRACE_SECONDS,
        **options,
    )
    return uvicorn.Server(config)
