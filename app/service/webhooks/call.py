"""The check of a webhook's URL, and one POST to exactly the address that was checked.

A client chooses the URL, so that it is guarded as all outgoing connections are, and redirects are not
followed.
"""

import http.client
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import urlsplit

from app import outgoing
from app.outgoing import AddressRefused, Refusal

TIMEOUT_SECONDS = 10.0
_LABEL = "webhook_url"


class WebhookRefused(ValueError):
    """The URL or its address must not be called; `code` is the stable error code."""

    def __init__(self, code: str, message: str) -> None:
        self.code = code
        super().__init__(message)


def check_url(url: str, *, allow_private: bool) -> None:
    """Check a URL without resolving its host. Raises `WebhookRefused` if it can never be called."""
    with _translated():
        outgoing.check_url(url, allow_private=allow_private, label=_LABEL)


def resolve(url: str, *, allow_private: bool) -> tuple[str, int]:
    """Return the address and port to connect to.

    Raises `WebhookRefused` if the host cannot be resolved or any of its addresses is not public.
    """
    with _translated():
        return outgoing.resolve(url, allow_private=allow_private, label=_LABEL)


@contextmanager
def _translated() -> Iterator[None]:
    try:
        yield
    except AddressRefused as error:
        raise WebhookRefused(_error_code(error.reason), str(error)) from None


def _error_code(reason: Refusal) -> str:
    match reason:
        case Refusal.INVALID:
            return "invalid_webhook_url"
        case Refusal.UNKNOWN_HOST:
            return "webhook_host_unknown"
        case Refusal.PRIVATE:
            return "webhook_address_private"


def post(url: str, body: bytes, headers: dict[str, str], *, allow_private: bool) -> int:
    """POST to the URL and return the status. Raises `WebhookRefused`, or `OSError` if the network fails."""
    address, _ = resolve(url, allow_private=allow_private)
    host, port, secure = outgoing.parse(url, label=_LABEL)
    parts = urlsplit(url)
    target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    connection = http.client.HTTPConnection(host, port, timeout=TIMEOUT_SECONDS)
    try:
        connection.sock = outgoing.connect(address, port, host if secure else None, TIMEOUT_SECONDS)
        with outgoing.time_limit(TIMEOUT_SECONDS, connection.sock):
            connection.request("POST", target, body, headers)
            return connection.getresponse().status
    except http.client.HTTPException as error:
        raise OSError(f"no HTTP answer: {error!r}") from error
    finally:
        connection.close()
