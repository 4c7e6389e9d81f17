"""Names the client of a request: its API key, else its address. Knows no limits.

The address is the one that `app.api.middleware.proxy` leaves in the scope. An IPv6 client can choose among
2**64 addresses, so that its network of 64 bits counts as one client.
"""

import ipaddress
from contextvars import ContextVar
from functools import lru_cache

UNKNOWN = "unknown"
_current: ContextVar[str] = ContextVar("client", default=UNKNOWN)


@lru_cache(maxsize=4096)
def client_at(host: str | None) -> str:
    """Return the name of the client at an address; `UNKNOWN` for a text that is none."""
    try:
        address = ipaddress.ip_address((host or "").partition("%")[0])
    except ValueError:
        return UNKNOWN
    if isinstance(address, ipaddress.IPv6Address):
        if address.ipv4_mapped is None:
            return str(ipaddress.ip_network((int(address) >> 64 << 64, 64)))
        address = address.ipv4_mapped
    return str(address)


def client_of_key(name: str) -> str:
    """Return the name of the client that sends the API key of this name."""
    return f"key:{name}"


def current_client() -> str:
    """Return the client of the request that this task or thread serves."""
    return _current.get()


def serve_client(client: str) -> None:
    """Make `client` the current one of this task, and of the threads that it starts."""
    _current.set(client)
