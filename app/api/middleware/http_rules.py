"""Middleware for what HTTP asks of every route alike, so that no route does it by hand.

HEAD is GET without the body. OPTIONS tells the methods. `If-None-Match` with what the client has, or with
`*`, gives 304. A query parameter that the route does not have is refused, as an unknown field of a body is.
"""

import difflib
import re
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import anyio
from fastapi.dependencies.models import Dependant
from fastapi.routing import APIRoute
from starlette.datastructures import Headers, MutableHeaders, QueryParams
from starlette.responses import Response
from starlette.routing import BaseRoute
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.api.problems import Problem, answer_to

# In the scope of a HEAD request, whose method is GET from here on: a route that would queue work must not.
IS_HEAD = "framefit.is_head"
# Headers of a body, which 304 has not.
_OF_BODY = ("content-length", "content-type", "content-range", "content-disposition", "content-encoding")


class _Rule(NamedTuple):
    path: re.Pattern[str]
    methods: frozenset[str]
    parameters: frozenset[str] | None  # None: any; pages and files may be opened with any query


class HttpRules:
    """ASGI middleware for these routes. A body that is streamed stays so."""

    def __init__(self, app: ASGIApp, routes: Iterable[BaseRoute]) -> None:
        self._app = app
        self._rules = [_rule(route) for route in routes]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Forward the request, as GET if it is HEAD, or answer it."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        method = scope["method"]
        if method == "OPTIONS" and (allowed := self._allowed(scope)):
            await Response(status_code=204, headers={"Allow": allowed})(scope, receive, send)
        elif (refusal := self._unknown_parameter(scope)) is not None:
            await answer_to(scope, refusal)(scope, receive, send)
        elif method in ("GET", "HEAD"):
            await self._read(scope, receive, self._with_allow(scope, send))
        else:
            await self._app(scope, receive, self._with_allow(scope, send))

    async def _read(self, scope: Scope, receive: Receive, send: Send) -> None:
        head, known = scope["method"] == "HEAD", Headers(scope=scope).getlist("if-none-match")
        if not head and not known:
            await self._app(scope, receive, send)
            return
        if head:  # ranges are GET's alone
            headers = [(name, value) for name, value in scope["headers"] if name != b"range"]
            scope = {**scope, "method": "GET", "headers": headers, IS_HEAD: True}
        # Once the headers are sent, nothing is left to do: no file is read, no event stream is followed.
        with anyio.CancelScope() as rest:

            async def send_headers(message: Message) -> None:
                if message["type"] == "http.response.start":
                    unchanged = _is_unchanged(message, known)
                    if unchanged:
                        _empty(message)
                    await send(message)
                    if head or unchanged:
                        await send({"type": "http.response.body", "body": b"", "more_body": False})
                        rest.cancel()
                elif not rest.cancel_called:
                    await send(message)

            await self._app(scope, receive, send_headers)

    def _matching(self, scope: Scope) -> Iterator[_Rule]:
        path: str = scope["path"].removeprefix(scope.get("root_path", ""))
        return (rule for rule in self._rules if rule.path.match(path))

    def _allowed(self, scope: Scope) -> str:
        return ", ".join(sorted({method for rule in self._matching(scope) for method in rule.methods}))

    def _with_allow(self, scope: Scope, send: Send) -> Send:
        """Return a `send` that names all methods of the path in 405; each route knows its own only."""

        async def send_complete(message: Message) -> None:
            if message["type"] == "http.response.start" and message["status"] == 405:
                MutableHeaders(scope=message)["allow"] = self._allowed(scope)
            await send(message)

        return send_complete

    def _unknown_parameter(self, scope: Scope) -> Problem | None:
        if not scope["query_string"]:
            return None
        rule = next((rule for rule in self._matching(scope) if scope["method"] in rule.methods), None)
        if rule is None or rule.parameters is None:
            return None
        name = next((one for one in QueryParams(scope["query_string"]) if one not in rule.parameters), None)
        if name is None:
            return None
        known = ", ".join(sorted(rule.parameters)) or "none"
        near = difflib.get_close_matches(name[:100], rule.parameters, n=1)
        hint = f"did you mean {near[0]}?" if near else f"it takes {known}"
        message = f"this route has no query parameter {name[:100]!r}: {hint}"
        return Problem(422, "unknown_parameter", message, data={"parameter": name[:100]})


def _rule(route: BaseRoute) -> _Rule:
    """Return the methods of a route and its query parameters. A mounted folder of files has no methods."""
    methods = set(getattr(route, "methods", None) or {"GET"}) | {"OPTIONS"}
    if "GET" in methods:
        methods.add("HEAD")
    parameters = None
    if isinstance(route, APIRoute) and route.include_in_schema:
        parameters = frozenset(_query_parameters(route.dependant))
    path: re.Pattern[str] = getattr(route, "path_regex")  # noqa: B009  (not every BaseRoute has one)
    return _Rule(path, frozenset(methods), parameters)


def _query_parameters(dependant: Dependant) -> Iterator[str]:
    """Yield the query parameters of a route and of what it depends on."""
    yield from (field.alias for field in dependant.query_params)
    for each in dependant.dependencies:
        yield from _query_parameters(each)


def _is_unchanged(message: Message, known: list[str]) -> bool:
    """Return whether the client has what a response would give it; `*` stands for whatever there is."""
    if message["status"] not in (200, 206) or not known:
        return False
    etag = Headers(raw=message["headers"]).get("etag")
    tags = [tag.strip().removeprefix("W/") for value in known for tag in value.split(",")]
    return "*" in tags or (etag is not None and etag.removeprefix("W/") in tags)


def _empty(message: Message) -> None:
    message["status"] = 304
    headers = MutableHeaders(scope=message)
    for name in _OF_BODY:
        del headers[name]
