"""API keys: who may call, and whose jobs are whose. Keys are compared by digest, in constant time, and never
stored.

Without keys in the settings everyone may call. A browser, which cannot put headers on a video or an event
stream, hands its key in once and gets it back as a cookie that scripts and other sites cannot read.
"""

import hashlib
import hmac
from typing import Annotated

from fastapi import Depends, Request

from app.api.problems import Problem
from app.api.service import TheService

COOKIE = "framefit_key"


def owner_of_key(key: str) -> str:
    """The name under which a key's jobs are kept: a digest that does not lead back to the key."""
    return hashlib.sha256(key.encode()).hexdigest()[:32]


def is_known(key: str, keys: tuple[str, ...]) -> bool:
    """Whether `key` is one of `keys`; takes the same time whichever it is."""
    digest = hashlib.sha256(key.encode()).digest()
    matches = [hmac.compare_digest(digest, hashlib.sha256(known.encode()).digest()) for known in keys]
    return any(matches)


def key_in(request: Request) -> str | None:
    """The key a request carries: bearer token, X-API-Key, or the page's cookie."""
    scheme, _, token = request.headers.get("authorization", "").partition(" ")
    if scheme.lower() == "bearer" and token:
        return token.strip()
    return request.headers.get("x-api-key") or request.cookies.get(COOKIE)


def caller(request: Request, service: TheService) -> str | None:
    """The caller's owner name, None where no keys are set; problem 401 for a missing or wrong key."""
    keys = service.settings.api_keys
    if not keys:
        return None
    key = key_in(request)
    if key is None or not is_known(key, keys):
        message = "an API key is needed: send it as Authorization: Bearer KEY"
        raise Problem(401, "unauthorized", message, headers={"WWW-Authenticate": "Bearer"})
    return owner_of_key(key)


Caller = Annotated[str | None, Depends(caller)]
