"""Middleware for every request: cross-site protection, security headers, and a request id.

Pages of other sites may only read. Every response carries security headers and the request id that the log
shows.
"""

import logging
import re
import time
import uuid

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.api.problems import Problem
from app.service.logs import bind_ids

log = logging.getLogger(__name__)
REQUEST_ID = "X-Request-Id"
# The id of a client or proxy is kept if it is safe in a header and in a log line.
SAFE_ID = re.compile(r"[A-Za-z0-9._:-]{1,100}")
HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    # The page sets its own policy. Other documents, such as an image opened in a tab, may run no script.
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'; sandbox",
}
SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})


class Guard:
    """ASGI middleware. It does not touch bodies, so streamed responses stay streamed."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Forward the request, or refuse it with a problem document."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        request_id = _request_id(scope)
        started, status = time.monotonic(), 0

        async def send_safely(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers.setdefault(name, value)
                headers[REQUEST_ID] = request_id
            await send(message)

        with bind_ids(request_id=request_id):
            try:
                await self._serve(scope, receive, send_safely)
            finally:
                seconds = time.monotonic() - started
                log.debug(
                    "request_done method=%s path=%s status=%d seconds=%.4f",
                    scope["method"],
                    scope["path"],
                    status,
                    seconds,
                )

    async def _serve(self, scope: Scope, receive: Receive, send: Send) -> None:
        # A page of another site must not submit jobs through a visitor's browser. Only browsers send the
        # header.
        foreign = Headers(scope=scope).get("sec-fetch-site") in ("cross-site", "same-site")
        if foreign and scope["method"] not in SAFE_METHODS:
            message = "a page of another site may only read: use Framefit's own page"
            problem = Problem(403, "cross_site", message)
            await problem.response()(scope, receive, send)
            return
        await self._app(scope, receive, send)


def _request_id(scope: Scope) -> str:
    given = Headers(scope=scope).get(REQUEST_ID, "")
    return given if SAFE_ID.fullmatch(given) else uuid.uuid4().hex
