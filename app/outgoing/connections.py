"""The check of a URL, the resolution of its host, and a connection to exactly the address that was checked.

The host is resolved here and every address must be public, so that a name server cannot give one address to
the check and another to the connection. `label` is the URL's name in messages.
"""

import ipaddress
import os
import socket
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from enum import Enum
from typing import NamedTuple
from urllib.parse import urlsplit

from app.outgoing.networks import Address, is_public


class Refusal(Enum):
    """Why a URL or its address is refused."""

    INVALID = "invalid"
    UNKNOWN_HOST = "unknown_host"
    PRIVATE = "private"


class AddressRefused(ValueError):
    """The URL or its address must not be called."""

    def __init__(self, reason: Refusal, message: str) -> None:
        self.reason = reason
        super().__init__(message)


class Target(NamedTuple):
    """Where a URL leads: `secure` is whether by https."""

    host: str
    port: int
    secure: bool


def check_url(url: str, *, allow_private: bool, label: str = "the URL") -> None:
    """Check a URL without resolving its host. Raises `AddressRefused` if it can never be called."""
    host = parse(url, label=label).host
    literal = _literal(host)
    inward = (
        literal is not None or host == "localhost" or host.endswith((".localhost", ".local", ".internal"))
    )
    if inward and not allow_private and (literal is None or not is_public(literal)):
        raise AddressRefused(Refusal.PRIVATE, f"{label} points to {host}, which is not a public address")


def resolve(url: str, *, allow_private: bool, label: str = "the URL") -> tuple[str, int]:
    """Return the address and port to connect to.

    Raises `AddressRefused` if the host cannot be resolved or any of its addresses is not public.
    """
    host, port, _ = parse(url, label=label)
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:  # the latter for a label that no name can have
        raise AddressRefused(Refusal.UNKNOWN_HOST, f"{host} cannot be resolved: {error}") from None
    addresses = [str(item[4][0]) for item in found]
    for address in addresses:
        if not allow_private and not is_public(ipaddress.ip_address(address.partition("%")[0])):
            raise AddressRefused(Refusal.PRIVATE, f"{host} resolves to {address}, which is not public")
    return addresses[0], port


def parse(url: str, *, label: str = "the URL") -> Target:
    """The parts of an http or https URL that a connection needs. Raises `AddressRefused`."""
    try:
        parts = urlsplit(url)
        host, port = (parts.hostname or "").rstrip("."), parts.port
    except ValueError as error:
        raise AddressRefused(Refusal.INVALID, f"{label} cannot be parsed: {error}") from None
    if parts.scheme not in ("http", "https") or not host or not url.isascii() or not url.isprintable():
        raise AddressRefused(Refusal.INVALID, f"{label} must be an http or https URL")
    if parts.username is not None or " " in url:
        raise AddressRefused(Refusal.INVALID, f"{label} must not contain a user name or spaces")
    secure = parts.scheme == "https"
    return Target(host.lower(), port or (443 if secure else 80), secure)


def _literal(host: str) -> Address | None:
    try:
        return ipaddress.ip_address(host)
    except ValueError:
        pass
    try:  # 127.1, 0x7f000001 and 2130706433 are also addresses
        return ipaddress.IPv4Address(socket.inet_aton(host))
    except OSError:
        return None


def connect(address: str, port: int, name: str | None, seconds: float) -> socket.socket:
    """Connect to exactly this address within `seconds`; over TLS if the host's `name` is given."""
    raw = socket.create_connection((address, port), timeout=seconds)
    if name is None:
        return raw
    with time_limit(seconds, raw):
        return ssl.create_default_context().wrap_socket(raw, server_hostname=name)


@contextmanager
def time_limit(seconds: float, connection: socket.socket) -> Iterator[None]:
    """Shut the connection down if the block takes longer than `seconds`.

    A socket's own timeout restarts with every byte, so a receiver that sends slowly would block a thread.
    """
    # A TLS socket takes over the plain socket and cannot itself be duplicated.
    handle = socket.socket(fileno=os.dup(connection.fileno()))
    cut = threading.Timer(seconds, _shut, [handle])
    cut.start()
    try:
        yield
    finally:
        cut.cancel()
        handle.close()


def _shut(connection: socket.socket) -> None:
    with suppress(OSError):
        connection.shutdown(socket.SHUT_RDWR)
