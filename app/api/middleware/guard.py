"""Middleware for every request: protection from other sites, security headers, and a request id.

The service answers to its own names only, and pages of other sites may only read
(`app.api.middleware.hosts`). Every response carries security headers and the request id that the log shows.
"""

import asyncio
import logging
import re
import time
import uuid
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.api.middleware.hosts import ALLOWED_HOSTS, OwnHosts, origin_refusal
from app.api.problems import Problem, answer_to
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
TOLD_HOSTS = 100  # so many refused hosts are named in the log, each once


class Guard:
    """ASGI middleware. It does not touch bodies, so streamed responses stay streamed."""

    def __init__(self, app: ASGIApp, hosts: OwnHosts) -> None:
        self._app = app
        self._hosts = hosts
        self._told_hosts: set[str] = set()

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
                if "location" in headers:
                    headers["location"] = _local(headers["location"])
            await send(message)

        with bind_ids(request_id=request_id):
            try:
                await self._serve(scope, receive, send_safely)
            except asyncio.CancelledError:  # the server stops, and its grace time is over
                log.warning("request_ended_by_shutdown method=%s path=%s", scope["method"], scope["path"])
                if not status:
                    await answer_to(scope, _shutting_down())(scope, receive, send_safely)
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
        refusal = self._hosts.refusal(scope)
        if refusal is not None:
            self._tell(refusal.data["host"])
        refusal = refusal or origin_refusal(scope)
        app = self._app if refusal is None else answer_to(scope, refusal)
        await app(scope, receive, send)

    def _tell(self, host: str) -> None:
        if host not in self._told_hosts and len(self._told_hosts) < TOLD_HOSTS:
            self._told_hosts.add(host)
            log.warning("host_refused host=%s setting=%s", host, ALLOWED_HOSTS)


def _local(location: str) -> str:
    """Return the address as a path: with the request's host in it, it would lead wherever that says."""
    parts = urlsplit(location)
    path = "/" + parts.path.lstrip("/")
    return f"{path}?{parts.query}" if parts.query else path


def _shutting_down() -> Problem:
    message = "the service is stopping: send the request again"
    return Problem(503, "shutting_down", message, headers={"Retry-After": "10"})


def _request_id(scope: Scope) -> str:
    given = Headers(scope=scope).get(REQUEST_ID, "")
    return given if SAFE_ID.fullmatch(given) else uuid.uuid4().hex
