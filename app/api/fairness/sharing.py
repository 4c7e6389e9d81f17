"""Middleware that names each request's client and lets it wait for its turn.

A request holds its turn while its route runs: not while its body arrives, and not while its response is sent.
Health, readiness and metrics need no turn, so that no other request can keep them waiting.
"""

import asyncio
from collections.abc import Callable

from fastapi import Request
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.api.fairness.clients import client_at, client_of_key, serve_client
from app.api.fairness.turns import RequestTurn, Turns
from app.api.problems import Problem, answer_to

WITHOUT_TURN = frozenset({"/healthz", "/readyz", "/metrics"})
SUBMISSIONS = frozenset({"/generate", "/generate/batch", "/v1/videos"})
# So long is a client that asks for too much kept waiting for the refusal: it may repeat the request at once.
REFUSAL_SECONDS = 1.0

NameOfKey = Callable[[Request], str | None]


class FairlyShared:
    """ASGI middleware. `name_of_key` returns the name of a request's API key, or None without a valid one."""

    def __init__(self, app: ASGIApp, turns: Turns, name_of_key: NameOfKey) -> None:
        self._app = app
        self._turns = turns
        self._name_of_key = name_of_key

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Forward the request when its turn comes, or refuse it."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        client = self._client_of(scope)
        serve_client(client)
        path = scope["path"].removeprefix(scope.get("root_path", ""))
        if path in WITHOUT_TURN:
            await self._app(scope, receive, send)
            return
        submits = scope["method"] == "POST" and path in SUBMISSIONS
        exchange = _Exchange(RequestTurn(self._turns, client, submits=submits), scope, receive, send)
        try:
            connection = scope.get("state", {}).get("connection")
            if connection is not None:  # uvicorn's; a test's client has none
                connection.belongs_to(client)
            await exchange.turn.take()
        except Problem as problem:
            await asyncio.sleep(REFUSAL_SECONDS)
            await answer_to(scope, problem)(scope, receive, send)
            return
        try:
            await self._app(scope, exchange.receive, exchange.send)
        finally:
            exchange.turn.end()

    def _client_of(self, scope: Scope) -> str:
        name = self._name_of_key(Request(scope))
        if name is not None:
            return client_of_key(name)
        address = scope.get("client")
        return client_at(address[0] if address else None)


class _Exchange:
    """A request and its response; holds a turn unless a body or a reader is waited for."""

    def __init__(self, turn: RequestTurn, scope: Scope, receive: Receive, send: Send) -> None:
        headers = Headers(scope=scope)
        self.turn = turn
        self._receive = receive
        self._send = send
        self._complete = "transfer-encoding" not in headers and headers.get("content-length", "0") == "0"
        self._answered = False

    def _end_if_answered(self) -> None:
        if self._answered:
            self.turn.end()

    async def receive(self) -> Message:
        if self._complete or self._answered:
            return await self._receive()
        self.turn.end()
        message = await self._receive()
        if message["type"] == "http.request" and not message.get("more_body", False):
            self._complete = True
            await self.turn.take()
            self._end_if_answered()  # while it waited
        return message

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self._answered = True
            self.turn.end()
            if message["status"] == 429:
                await asyncio.sleep(REFUSAL_SECONDS)
        await self._send(message)
