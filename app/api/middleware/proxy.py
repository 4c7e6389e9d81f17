"""What a proxy in front of the service says: the path prefix, the scheme and the client's address.

Headers count only if the connection comes from a trusted address, as uvicorn decides it: FORWARDED_ALLOW_IPS,
by default 127.0.0.1. A prefix becomes ASGI's `root_path`, which is also part of `path`.
"""

from collections.abc import Collection, Iterable
from typing import Any

from starlette.types import ASGIApp, Receive, Scope, Send
from uvicorn.middleware.proxy_headers import ProxyHeadersMiddleware

from app.config import PATH_PREFIX

HEADER = b"x-forwarded-prefix"


class BehindProxy:
    """ASGI middleware around the app; it must see the connection's own address."""

    def __init__(
        self, app: ASGIApp, trusted_hosts: list[str] | str, root_path: str, own_segments: Collection[str]
    ) -> None:
        # Protocols of two packages that describe the same call.
        self._inner: Any = ProxyHeadersMiddleware(app, trusted_hosts)  # type: ignore[arg-type]
        self._root_path = root_path
        self._own_segments = frozenset(own_segments)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Forward the request, with the prefix in its scope."""
        if scope["type"] == "http":
            prefix = self._prefix_in_headers(scope)
            scope = self._with_prefix(scope, self._root_path if prefix is None else prefix)
        await self._inner(scope, receive, send)

    def _prefix_in_headers(self, scope: Scope) -> str | None:
        """Return a trusted proxy's prefix; None without one, or for one that is no path."""
        peer = scope.get("client")
        if (peer[0] if peer else None) not in self._inner.trusted_hosts:
            return None
        return prefix_of(value for name, value in scope["headers"] if name == HEADER)

    def _with_prefix(self, scope: Scope, prefix: str) -> Scope:
        """Return the scope under the prefix, whether the proxy took it off the path or not.

        A prefix that is the name of a route, such as /jobs, must have been taken off.
        """
        if not prefix:
            return scope
        path, raw_path = scope["path"], scope.get("raw_path")
        named = prefix.split("/")[1] in self._own_segments
        if not named and (path == prefix or path.startswith(f"{prefix}/")):
            return {**scope, "root_path": prefix}
        raw = None if raw_path is None else prefix.encode() + raw_path
        return {**scope, "root_path": prefix, "path": prefix + path, "raw_path": raw}


def prefix_of(values: Iterable[bytes]) -> str | None:
    """Return the prefix in the values of the header; several proxies' prefixes follow each other.

    None if there is none, or if one of them is not a plain path: it would lead links to other hosts.
    """
    parts = [part.strip().rstrip("/") for value in values for part in value.decode("latin-1").split(",")]
    given = [part for part in parts if part]
    return "".join(given) if given and all(PATH_PREFIX.fullmatch(part) for part in given) else None
