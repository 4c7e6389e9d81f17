"""The check of a webhook's URL, and one POST to exactly the address that was checked.

A client chooses the URL and could make this server call a service inside the operator's network (server-side
request forgery). So the host is resolved here, every address must be public, the connection goes to exactly
the checked address, and redirects are not followed.
"""

import http.client
import ipaddress
import os
import socket
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from urllib.parse import urlsplit

from app.service.webhooks.networks import Address, is_public

TIMEOUT_SECONDS = 10.0


class WebhookRefused(ValueError):
    """The URL or its address must not be called; `code` is the stable error code."""

    def __init__(self, code: str, message: str) -> None:
        self.code = code
        super().__init__(message)


def check_url(url: str, *, allow_private: bool) -> None:
    """Check a URL without resolving its host. Raises `WebhookRefused` if it can never be called."""
    host, _, _ = _parse(url)
    literal = _literal(host)
    inward = (
        literal is not None or host == "localhost" or host.endswith((".localhost", ".local", ".internal"))
    )
    if inward and not allow_private and (literal is None or not is_public(literal)):
        raise WebhookRefused(
            "webhook_address_private", f"webhook_url points to {host}, which is not a public address"
        )


def resolve(url: str, *, allow_private: bool) -> tuple[str, int]:
    """Return the address and port to connect to.

    Raises `WebhookRefused` if the host cannot be resolved or any of its addresses is not public.
    """
    host, port, _ = _parse(url)
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:  # the latter for a label that no name can have
        raise WebhookRefused("webhook_host_unknown", f"{host} cannot be resolved: {error}") from None
    addresses = [str(item[4][0]) for item in found]
    for address in addresses:
        if not allow_private and not is_public(ipaddress.ip_address(address.partition("%")[0])):
            raise WebhookRefused(
                "webhook_address_private", f"{host} resolves to {address}, which is not public"
            )
    return addresses[0], port


def _parse(url: str) -> tuple[str, int, bool]:
    try:
        parts = urlsplit(url)
        host, port = (parts.hostname or "").rstrip("."), parts.port
    except ValueError as error:
        raise WebhookRefused("invalid_webhook_url", f"webhook_url cannot be parsed: {error}") from None
    if parts.scheme not in ("http", "https") or not host or not url.isascii() or not url.isprintable():
        raise WebhookRefused("invalid_webhook_url", "webhook_url must be an http or https URL")
    if parts.username is not None or " " in url:
        raise WebhookRefused("invalid_webhook_url", "webhook_url must not contain a user name or spaces")
    secure = parts.scheme == "https"
    return host.lower(), port or (443 if secure else 80), secure


def _literal(host: str) -> Address | None:
    try:
        return ipaddress.ip_address(host)
    except ValueError:
        pass
    try:  # 127.1, 0x7f000001 and 2130706433 are also addresses
        return ipaddress.IPv4Address(socket.inet_aton(host))
    except OSError:
        return None


def post(url: str, body: bytes, headers: dict[str, str], *, allow_private: bool) -> int:
    """POST to the URL and return the status. Raises `WebhookRefused`, or `OSError` if the network fails."""
    address, _ = resolve(url, allow_private=allow_private)
    host, port, secure = _parse(url)
    parts = urlsplit(url)
    target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    connection = http.client.HTTPConnection(host, port, timeout=TIMEOUT_SECONDS)
    try:
        connection.sock = _connect(address, port, host if secure else None)
        with _time_limit(TIMEOUT_SECONDS, connection.sock):
            connection.request("POST", target, body, headers)
            return connection.getresponse().status
    except http.client.HTTPException as error:
        raise OSError(f"no HTTP answer: {error!r}") from error
    finally:
        connection.close()


def _connect(address: str, port: int, name: str | None) -> socket.socket:
    """Connect to exactly this address; over TLS if the host's `name` is given."""
    raw = socket.create_connection((address, port), timeout=TIMEOUT_SECONDS)
    if name is None:
        return raw
    with _time_limit(TIMEOUT_SECONDS, raw):
        return ssl.create_default_context().wrap_socket(raw, server_hostname=name)


@contextmanager
def _time_limit(seconds: float, connection: socket.socket) -> Iterator[None]:
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
