"""What a proxy in front of the service says: path prefix, scheme, host and the client's address.

Headers count only if the connection comes from a trusted address, as uvicorn decides it: FORWARDED_ALLOW_IPS,
by default 127.0.0.1. A prefix becomes ASGI's `root_path`, which is also part of `path`.
"""

from collections.abc import Collection, Iterable
from typing import Any

from starlette.types import ASGIApp, Receive, Scope, Send
from uvicorn.middleware.proxy_headers import ProxyHeadersMiddleware

from app.api.middleware.hosts import FORWARDED_HOSTS
from app.config import PATH_PREFIX

HEADER = b"x-forwarded-prefix"
HOST_HEADER = b"x-forwarded-host"


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
        """Forward the request, with the prefix and the host that the proxy was asked for in its scope."""
        if scope["type"] == "http":
            trusted = self._is_trusted(scope)
            prefix = prefix_of(_values(scope, HEADER)) if trusted else None
            scope = self._with_prefix(scope, self._root_path if prefix is None else prefix)
            if trusted:
                scope[FORWARDED_HOSTS] = _list_of(_values(scope, HOST_HEADER))
        await self._inner(scope, receive, send)

    def trusts(self, host: str | None) -> bool:
        """Return whether connections from this address come from a trusted proxy."""
        return host in self._inner.trusted_hosts

    def _is_trusted(self, scope: Scope) -> bool:
        peer = scope.get("client")
        return self.trusts(peer[0] if peer else None)

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


def _values(scope: Scope, header: bytes) -> list[bytes]:
    return [value for name, value in scope["headers"] if name == header]


def _list_of(values: Iterable[bytes]) -> list[str]:
    """Return the entries of a header; several proxies' entries follow each other."""
    parts = [part.strip() for value in values for part in value.decode("latin-1").split(",")]
    return [part for part in parts if part]


def prefix_of(values: Iterable[bytes]) -> str | None:
    """Return the prefix in the values of the header; several proxies' prefixes follow each other.

    None if there is none, or if one of them is not a plain path: it would lead links to other hosts.
    """
    given = [part.rstrip("/") for part in _list_of(values) if part.rstrip("/")]
    return "".join(given) if given and all(PATH_PREFIX.fullmatch(part) for part in given) else None
