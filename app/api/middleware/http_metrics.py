"""Counts requests and measures their time, by route.

A route is its template, such as `/jobs/{job_id}`, never the path itself; paths without a route are `unknown`.
What a middleware answers in a route's place counts for the route.
"""

import re
import time
from collections.abc import Iterable
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, Counter, Histogram
from starlette.routing import BaseRoute
from starlette.types import ASGIApp, Message, Receive, Scope, Send

if TYPE_CHECKING:
    from app.service.tracing.otlp import RequestSpans  # an extra

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
UNKNOWN = "unknown"
# Asked every few seconds by machines: they get no spans.
POLLED = frozenset({"/healthz", "/readyz", "/metrics"})
JOB_PATH = re.compile(r"/jobs/([^/]+)$")
# The connection was closed before a response began; a status of nginx.
CLOSED = 499


class HttpMetrics:
    """The metrics of requests."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._requests = Counter(
            "framefit_http_requests",
            "Requests by route, method and status; status 499: the client closed the connection.",
            ("route", "method", "status"),
            registry=registry,
        )
        self._seconds = Histogram(
            "framefit_http_request_duration_seconds",
            "Time from a request's head to the start of its response, by route.",
            ("route",),
            buckets=SECONDS,
            registry=registry,
        )

    def count(self, route: str, method: str, status: int, seconds: float) -> None:
        """Count one request."""
        method = method if method in METHODS else "other"
        self._requests.labels(route, method, str(status)).inc()
        self._seconds.labels(route).observe(seconds)


class Measured:
    """ASGI middleware for these routes; the app's outermost one, so that it counts refusals of the others."""

    def __init__(
        self,
        app: ASGIApp,
        metrics: HttpMetrics,
        routes: Iterable[BaseRoute],
        spans: "RequestSpans | None" = None,
    ) -> None:
        self._app = app
        self._metrics = metrics
        self._spans = spans
        self._routes = tuple(routes)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Forward the request, and count it when its response begins."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started, counted = time.monotonic(), False
        path = scope["path"].removeprefix(scope.get("root_path", ""))

        def count(status: int, headers: Iterable[tuple[bytes, bytes]] = ()) -> None:
            nonlocal counted
            if not counted:
                counted = True
                seconds = time.monotonic() - started
                route = self._route_of(scope, path)
                self._metrics.count(route, scope["method"], status, seconds)
                if self._spans is not None and route not in POLLED:
                    self._add_span(self._spans, scope, route, status, seconds, headers)

        async def send_and_count(message: Message) -> None:
            if message["type"] == "http.response.start":
                count(message["status"], message.get("headers", ()))
            await send(message)

        try:
            await self._app(scope, receive, send_and_count)
        except Exception:
            count(500)  # Starlette answers outside of every middleware
            raise
        finally:
            count(CLOSED)

    def _add_span(
        self,
        spans: "RequestSpans",
        scope: Scope,
        route: str,
        status: int,
        seconds: float,
        answered: Iterable[tuple[bytes, bytes]],
    ) -> None:
        end = time.time()
        wanted = (b"traceparent", b"tracestate")
        context = {
            name.decode(): value.decode("latin-1") for name, value in scope["headers"] if name in wanted
        }
        location = next((value.decode("latin-1") for name, value in answered if name == b"location"), "")
        made = scope["method"] == "POST" and JOB_PATH.search(location)
        spans.add(
            route,
            scope["method"] if scope["method"] in METHODS else "_OTHER",
            status,
            start=end - seconds,
            end=end,
            headers=context,
            job_id=made.group(1) if made else None,
        )

    def _route_of(self, scope: Scope, path: str) -> str:
        """Return the template of the route that has served the request to `path`, or `unknown`."""
        template = getattr(scope.get("route"), "path", None)
        if isinstance(template, str):
            return template
        # A route names itself in the scope only if it is FastAPI's own and gets this very scope.
        matching = [route for route in self._routes if getattr(route, "path_regex").match(path)]  # noqa: B009
        served = [one for one in matching if scope["method"] in (getattr(one, "methods", None) or ())]
        return next((str(getattr(one, "path")) for one in (*served, *matching)), UNKNOWN)  # noqa: B009
