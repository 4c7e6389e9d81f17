"""What every request passes: pages of other sites may only look, and every answer carries safe headers."""

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.api.problems import Problem

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

        async def send_safely(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        # A page of another site must not make a visitor's browser submit jobs. Only browsers send this
        # header.
        foreign = Headers(scope=scope).get("sec-fetch-site") in ("cross-site", "same-site")
        if foreign and scope["method"] not in SAFE_METHODS:
            problem = Problem(403, "cross_site", "a page of another site may not do this")
            await problem.response()(scope, receive, send_safely)
            return
        await self._app(scope, receive, send_safely)
