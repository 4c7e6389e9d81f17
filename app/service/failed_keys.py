"""The limit on wrong API keys from one address. Knows no HTTP.

An address may send `BURST` wrong keys, and one more every `SECONDS_PER_KEY` after that. A wrong key that it
sends again does not count again: a page with an old cookie repeats one, and repeating guesses nothing. Beyond
this limit no key from it is looked up, so guessing on is useless, with one exception: a key that was accepted
from the address within the last hour goes on working. So nobody locks out those who share an address with
him, such as that of a proxy which does not say whom it serves.
"""

import ipaddress
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeVar

BURST = 10
SECONDS_PER_KEY = 6.0
ACCEPTED_SECONDS = 3600.0
ADDRESSES = 10_000  # the oldest is forgotten
KEYS_OF_AN_ADDRESS = 100

T = TypeVar("T")


@dataclass(slots=True)
class _Seen:
    """What an address sent: the number of wrong keys, less those that time has forgiven, the last of these
    keys, and the keys it may use."""

    wrong: float = 0.0
    at: float = 0.0
    refused: OrderedDict[bytes, None] = field(default_factory=OrderedDict)
    accepted: OrderedDict[bytes, float] = field(default_factory=OrderedDict)


class FailedKeys:
    """Counts wrong keys by address. Thread-safe."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._seen: OrderedDict[str, _Seen] = OrderedDict()
        self._lock = threading.Lock()

    def wait_seconds(self, address: str, digest: bytes) -> float:
        """Return how long the key with this digest must not be tried from the address; 0 if it may be."""
        with self._lock:
            seen = self._of(address)
            if seen.wrong <= BURST - 1:
                return 0.0
            if self._clock() - seen.accepted.get(digest, -ACCEPTED_SECONDS) < ACCEPTED_SECONDS:
                return 0.0
            return (seen.wrong - (BURST - 1)) * SECONDS_PER_KEY

    def refused(self, address: str, digest: bytes) -> bool:
        """Count a wrong key unless it was counted before; return whether the limit is reached."""
        with self._lock:
            seen = self._of(address)
            if digest not in seen.refused:
                seen.wrong += 1
            _remember(seen.refused, digest, None)
            return seen.wrong > BURST - 1

    def accepted(self, address: str, digest: bytes) -> None:
        """Remember a right key."""
        with self._lock:
            _remember(self._of(address).accepted, digest, self._clock())

    def _of(self, address: str) -> _Seen:
        """Return the entry of an address as of now."""
        client, now = client_of(address), self._clock()
        seen = self._seen.setdefault(client, _Seen(at=now))
        self._seen.move_to_end(client)
        seen.wrong = max(0.0, seen.wrong - (now - seen.at) / SECONDS_PER_KEY)
        seen.at = now
        while len(self._seen) > ADDRESSES:
            self._seen.popitem(last=False)
        return seen


def _remember(keys: OrderedDict[bytes, T], digest: bytes, value: T) -> None:
    keys[digest] = value
    keys.move_to_end(digest)
    if len(keys) > KEYS_OF_AN_ADDRESS:
        keys.popitem(last=False)


def client_of(address: str) -> str:
    """Return what counts as one client: an IPv4 address, or the IPv6 network of 64 bits of one host."""
    try:
        parsed = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return address
    if isinstance(parsed, ipaddress.IPv4Address):
        return str(parsed)
    if parsed.ipv4_mapped is not None:
        return str(parsed.ipv4_mapped)
    return str(ipaddress.IPv6Network((int(parsed) >> 64 << 64, 64)))
