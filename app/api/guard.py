"""What every request passes: pages of other sites may only look, every answer carries safe headers, and an id
that the log has, too.
"""

import logging
import re
import time
import uuid

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.api.problems import Problem
from app.service.logs import bound

log = logging.getLogger(__name__)
REQUEST_ID = "X-Request-Id"
# A client's, or a proxy's, own id is kept where it can do no harm in a header or a line of the log.
HARMLESS_ID = re.compile(r"[A-Za-z0-9._:-]{1,100}")
HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    # The page sets its own. Anything else, such as a picture that is opened by itself, may run nothing.
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'; sandbox",
}
SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})


class Guard:
    """ASGI middleware; does not touch bodies, so that streams stay streams."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, or refuse it."""
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

        with bound(request_id=request_id):
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
        # A page of another site must not make a visitor's browser submit jobs. Only browsers send this
        # header.
        foreign = Headers(scope=scope).get("sec-fetch-site") in ("cross-site", "same-site")
        if foreign and scope["method"] not in SAFE_METHODS:
            problem = Problem(403, "cross_site", "a page of another site may not do this")
            await problem.response()(scope, receive, send)
            return
        await self._app(scope, receive, send)


def _request_id(scope: Scope) -> str:
    given = Headers(scope=scope).get(REQUEST_ID, "")
    return given if HARMLESS_ID.fullmatch(given) else uuid.uuid4().hex
