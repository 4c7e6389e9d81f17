"""Webhooks: signed, retried notifications to other servers that a job has ended.

A client chooses the URL and could make this server call a service inside the operator's network (server-side
request forgery). So the host is resolved here, every address must be public, the connection goes to exactly
the checked address, and redirects are not followed. Knows neither routes nor SQL.
"""

import base64
import hashlib
import hmac
import http.client
import ipaddress
import json
import logging
import os
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from urllib.parse import urlsplit

from app.jobs import Json
from app.store import JobStore, NoSuchJob, StoreError
from app.store.deliveries import Delivery

log = logging.getLogger(__name__)
TIMEOUT_SECONDS = 10.0
IDLE_SECONDS = 1.0
AT_ONCE = 8
# IPv6 networks whose last 32 bits are an IPv4 address: NAT64, and the deprecated IPv4-compatible form.
IPV4_WITHIN = (ipaddress.ip_network("64:ff9b::/96"), ipaddress.ip_network("::/96"))
# Seconds at first, then hours: a receiver that is down for a night still gets its notifications.
RETRY_SECONDS = (5.0, 30.0, 120.0, 600.0, 1800.0, 7200.0, 21600.0)


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
    if inward and not allow_private and (literal is None or not _is_public(literal)):
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
    except OSError as error:
        raise WebhookRefused("webhook_host_unknown", f"{host} cannot be resolved: {error}") from None
    addresses = [str(item[4][0]) for item in found]
    for address in addresses:
        if not allow_private and not _is_public(ipaddress.ip_address(address.partition("%")[0])):
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


def _literal(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(host)
    except ValueError:
        pass
    try:  # 127.1, 0x7f000001 and 2130706433 are also addresses
        return ipaddress.IPv4Address(socket.inet_aton(host))
    except OSError:
        return None


def _is_public(address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> bool:
    if isinstance(address, ipaddress.IPv6Address):
        inner = address.ipv4_mapped or address.sixtofour or (address.teredo and address.teredo[1])
        if inner:
            return _is_public(inner)
        if any(address in network for network in IPV4_WITHIN):
            return _is_public(ipaddress.IPv4Address(int(address) & 0xFFFFFFFF))
    return address.is_global and not address.is_multicast


def sign(secret: str, message_id: str, timestamp: int, body: bytes) -> str:
    """Return the signature header of the Standard Webhooks convention: HMAC-SHA256 of `id.timestamp.body`."""
    content = f"{message_id}.{timestamp}.".encode() + body
    digest = hmac.new(secret.encode(), content, hashlib.sha256).digest()
    return f"v1,{base64.b64encode(digest).decode()}"


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


class Webhooks:
    """The threads that send the deliveries of the outbox. Several, so a slow receiver delays few others."""

    def __init__(
        self, store: JobStore, secret: str, view: Callable[[str], Json], *, allow_private: bool
    ) -> None:
        """`view` returns the JSON of a job by its id."""
        self._store = store
        self._secret = secret
        self._view = view
        self._allow_private = allow_private
        self._stopping = threading.Event()
        self._threads = [
            threading.Thread(target=self._loop, name=f"webhooks-{number}", daemon=True)
            for number in range(AT_ONCE)
        ]

    def start(self) -> None:
        """Start the threads."""
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """Stop the threads after their current deliveries; the others stay in the outbox."""
        self._stopping.set()
        deadline = time.monotonic() + 2 * TIMEOUT_SECONDS
        for thread in self._threads:
            thread.join(timeout=max(0.0, deadline - time.monotonic()))

    def _loop(self) -> None:
        while not self._stopping.is_set():
            try:
                delivery = self._store.take_delivery()
                if delivery is not None:
                    self._store.settle_delivery(delivery.id, self.deliver(delivery))
                    continue
            except StoreError as error:
                log.warning("webhooks_paused reason=%s", error)
            self._stopping.wait(IDLE_SECONDS)

    def deliver(self, delivery: Delivery) -> float | None:
        """Make one attempt; return the seconds until the next one, or None if there will be none."""
        message_id, timestamp = f"{delivery.job_id}-{delivery.id}", int(time.time())
        try:
            job = self._view(delivery.job_id)
        except NoSuchJob:
            return None
        body = json.dumps({"type": f"job.{delivery.outcome}", "timestamp": timestamp, "data": job}).encode()
        headers = {
            "Content-Type": "application/json",
            "User-Agent": "framefit",
            "webhook-id": message_id,
            "webhook-timestamp": str(timestamp),
            "webhook-signature": sign(self._secret, message_id, timestamp, body),
        }
        try:
            status = post(delivery.url, body, headers, allow_private=self._allow_private)
        except WebhookRefused as error:
            log.warning("webhook_refused job_id=%s code=%s", delivery.job_id, error.code)
            return None if error.code != "webhook_host_unknown" else _retry_delay(delivery.attempts)
        except OSError as error:
            log.info(
                "webhook_failed job_id=%s attempt=%d reason=%s", delivery.job_id, delivery.attempts, error
            )
            return _retry_delay(delivery.attempts)
        if 200 <= status < 300:
            return None
        log.info("webhook_failed job_id=%s attempt=%d status=%d", delivery.job_id, delivery.attempts, status)
        return _retry_delay(delivery.attempts)


def _retry_delay(attempts: int) -> float | None:
    return RETRY_SECONDS[attempts - 1] if attempts <= len(RETRY_SECONDS) else None
