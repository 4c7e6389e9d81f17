"""A file behind an https address, of which only the ranges are read that a header needs.

A host that does not serve ranges is refused after its first bytes; a file is never downloaded. Redirects are
followed and checked like the first address.
"""

import http.client
import re
from urllib.parse import unquote, urljoin, urlsplit

from app import outgoing
from app.outgoing import AddressRefused

TIMEOUT_SECONDS = 30.0
MOST_REDIRECTS = 5
# Far above any header: that of a text encoder with a tokenizer of 256,000 words has 6 MB.
MOST_BYTES = 64 * 2**20
_FIRST_BYTES = 2**20
_REDIRECTS = (301, 302, 303, 307, 308)
_RANGE = re.compile(r"bytes (\d+)-(\d+)/(\d+)")
_REASONS = {
    401: "it needs a login: accept the model's licence at its site and download the file",
    403: "it may not be read: accept the model's licence at its site and download the file",
    404: "there is no such file",
    410: "the file is gone",
    429: "the host is asked too often: try again later",
}


class RemoteUnreadable(OSError):
    """The file cannot be read by ranges; the message says why, without the address."""


class RemoteFile:
    """A `ByteSource` over https. Raises `RemoteUnreadable`.

    `allow_private` lets it read inside private networks, and by http.
    """

    def __init__(self, url: str, *, allow_private: bool = False) -> None:
        self.url = url
        self.name = unquote(urlsplit(url).path.rpartition("/")[2])
        self._allow_private = allow_private
        self._left = MOST_BYTES
        self.size = 0
        self._first = self._range(0, _FIRST_BYTES)

    def read(self, start: int, length: int) -> bytes:
        """The bytes from `start`, fewer than `length` at the end of the file. Raises `RemoteUnreadable`."""
        length = max(0, min(length, self.size - start))
        if start + length <= len(self._first):
            return self._first[start : start + length]
        return self._range(start, length)

    def _range(self, start: int, length: int) -> bytes:
        if length > self._left:
            raise RemoteUnreadable(
                f"its header has more than {MOST_BYTES:,} bytes, the most that is read of an address: "
                "download the file"
            )
        self._left -= length
        for _ in range(MOST_REDIRECTS + 1):
            found = self._answer(start, length)
            if isinstance(found, bytes):
                return found
            self.url = urljoin(self.url, found)
        raise RemoteUnreadable(f"it leads on more than {MOST_REDIRECTS} times")

    def _answer(self, start: int, length: int) -> bytes | str:
        """The bytes, or the address to which the host leads on."""
        try:
            outgoing.check_url(self.url, allow_private=self._allow_private)
            host, port, secure = outgoing.parse(self.url)
            if not secure and not self._allow_private:
                raise RemoteUnreadable(f"only https addresses are read, and {host} is asked by http")
            address, port = outgoing.resolve(self.url, allow_private=self._allow_private)
        except AddressRefused as error:
            raise RemoteUnreadable(str(error)) from None
        parts = urlsplit(self.url)
        target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        connection = http.client.HTTPConnection(host, port, timeout=TIMEOUT_SECONDS)
        try:
            connection.sock = outgoing.connect(address, port, host if secure else None, TIMEOUT_SECONDS)
            with outgoing.time_limit(TIMEOUT_SECONDS, connection.sock):
                wanted = f"bytes={start}-{start + length - 1}"
                headers = {"Range": wanted, "Accept-Encoding": "identity", "User-Agent": "framefit"}
                connection.request("GET", target, headers=headers)
                return self._read(connection.getresponse(), start, length)
        except RemoteUnreadable:
            raise
        except (OSError, http.client.HTTPException, ValueError) as error:
            reason = str(error) or type(error).__name__
            raise RemoteUnreadable(f"{host} does not answer as it should: {reason}") from None
        finally:
            connection.close()

    def _read(self, answer: http.client.HTTPResponse, start: int, length: int) -> bytes | str:
        location = answer.getheader("Location")
        if answer.status in _REDIRECTS and location:
            return location
        if answer.status == 200 and "/blob/" in self.url:
            raise RemoteUnreadable("it is the page about the file: write /resolve/ in place of /blob/")
        if answer.status == 200:
            raise RemoteUnreadable("the host does not serve ranges of it: download the file")
        if answer.status != 206:
            reason = _REASONS.get(answer.status, answer.reason or "no reason given")
            raise RemoteUnreadable(f"the host answers {answer.status}: {reason}")
        served = _RANGE.fullmatch(answer.getheader("Content-Range") or "")
        encoding = answer.getheader("Content-Encoding", "identity")
        if served is None or int(served[1]) != start or encoding != "identity":
            raise RemoteUnreadable("the host serves another range than was asked for: download the file")
        last, size = int(served[2]), int(served[3])
        if self.size not in (0, size):
            raise RemoteUnreadable("the file changed while it was read: try again")
        self.size = size
        expected = min(length, size - start)
        if last - start + 1 != expected:
            raise RemoteUnreadable("the host serves another range than was asked for: download the file")
        data = answer.read(expected)
        if len(data) != expected:
            raise RemoteUnreadable(f"the host ends after {len(data):,} of {expected:,} bytes: try again")
        return data
