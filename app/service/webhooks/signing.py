"""The secrets that webhooks are signed with, and the signature of a message.

Each API key has a secret of its own, derived from the operator's secret and the key's digest: whoever
receives one key's messages can neither check nor forge another's. Without API keys the operator's secret
itself signs. A key's `webhook_generation` changes its secret; messages then carry the signatures of this and
the previous generation, so that a receiver may change its secret at any time.
"""

import base64
import hashlib
import hmac
from collections.abc import Sequence
from typing import Protocol

from app.service.keys import ApiKey

SECRET_PREFIX = "whsec_"


class KnownKeys(Protocol):
    """The keys, as far as signing asks for them."""

    def of_owner(self, owner: str | None) -> ApiKey | None:
        """Return the key of an owner name, or None."""
        ...


class SigningKeys:
    """The secrets of all keys."""

    def __init__(self, operator_secret: str, keys: KnownKeys) -> None:
        self._operator_secret = operator_secret
        self._keys = keys

    def of(self, owner: str | None) -> Sequence[bytes]:
        """Return what signs the messages about an owner's jobs, the newest secret first.

        Nothing signs for a key that was removed: its generation is unknown, and an earlier secret may be the
        one that leaked.
        """
        if owner is None:
            return (self._operator_secret.encode(),)
        key = self._keys.of_owner(owner)
        if key is None:
            return ()
        newest = key.webhook_generation
        return tuple(
            derived(self._operator_secret, owner, generation)
            for generation in range(newest, max(0, newest - 2), -1)
        )


def derived(operator_secret: str, owner: str, generation: int) -> bytes:
    """Return the secret of a key, 32 bytes; `owner` is `ApiKey.owner`."""
    name = f"framefit webhook {generation} {owner}"
    return hmac.new(operator_secret.encode(), name.encode(), hashlib.sha256).digest()


def shown(secret: bytes) -> str:
    """Return a derived secret as receivers get it: `whsec_` and base64, as Standard Webhooks has it."""
    return SECRET_PREFIX + base64.b64encode(secret).decode()


def sign(secret: bytes, message_id: str, timestamp: int, body: bytes) -> str:
    """Return the signature of the Standard Webhooks convention: HMAC-SHA256 of `id.timestamp.body`."""
    content = f"{message_id}.{timestamp}.".encode() + body
    digest = hmac.new(secret, content, hashlib.sha256).digest()
    return f"v1,{base64.b64encode(digest).decode()}"
