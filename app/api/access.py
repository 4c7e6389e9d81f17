"""Authentication by API key, and the owner of each job.

If no keys are configured, every caller is accepted. A browser cannot send headers with a video or an event
stream, so the page sends its key once and gets a cookie that scripts and other sites cannot read. Wrong keys
are logged with the address that sent them, and limited for each address. An admin key sees and manages the
jobs of all keys.
"""

import logging
import math
from typing import Annotated

from fastapi import Depends, Request
from starlette.requests import cookie_parser

from app.api.dependencies import Service, TheService
from app.api.problems import Problem
from app.service.keys import ApiKey, digest_of

log = logging.getLogger(__name__)
COOKIE = "framefit_key"
UNAUTHORIZED = "the API key is missing or unknown: send it as Authorization: Bearer KEY"


def key_of_request(request: Request) -> str | None:
    """Return the request's key (bearer token, X-API-Key or cookie), or None."""
    scheme, _, token = request.headers.get("authorization", "").partition(" ")
    if scheme.lower() == "bearer" and token:
        return token.strip()
    return request.headers.get("x-api-key") or _cookie(request)


def _cookie(request: Request) -> str | None:
    """Return the first cookie of our name: the one of the longest path, if services share the host."""
    pairs = request.headers.get("cookie", "").split(";")
    return next((found[COOKIE] for pair in pairs if COOKIE in (found := cookie_parser(pair))), None)


def _known_key(request: Request, service: Service) -> ApiKey | None:
    if not service.keys:
        return None
    given = key_of_request(request)
    if given is None:
        raise _unauthorized(UNAUTHORIZED)
    return checked_key(request, service, given)


def checked_key(request: Request, service: Service, given: str, message: str = UNAUTHORIZED) -> ApiKey:
    """Return the entry of a key that a request gave.

    Raises problem 401 with `message` if it is unknown, and 429 if its address sent too many wrong keys.
    """
    address = request.client.host if request.client else ""
    digest = digest_of(given)
    wait = math.ceil(service.failed_keys.wait_seconds(address, digest))
    if wait:
        detail = f"{address} sent too many wrong API keys: try again in {wait} seconds"
        raise Problem(429, "too_many_wrong_keys", detail, headers={"Retry-After": str(wait)})
    found = service.keys.find(given)
    if found is None:
        limited = service.failed_keys.refused(address, digest)
        log.warning(
            "key_refused address=%s path=%s limited=%s", address, request.scope["path"][:100], limited
        )
        raise _unauthorized(message)
    service.failed_keys.accepted(address, digest)
    return found


def _unauthorized(message: str) -> Problem:
    return Problem(401, "unauthorized", message, headers={"WWW-Authenticate": "Bearer"})


def name_of_key(service: Service, request: Request) -> str | None:
    """Return the name of the request's API key, or None without a valid one."""
    given = key_of_request(request) if service.keys else None
    found = None if given is None else service.keys.find(given)
    return None if found is None else found.name


async def caller(request: Request, service: TheService) -> str | None:
    """Return the caller's owner name, or None if no keys are configured. Problem 401 without a valid key."""
    key = _known_key(request, service)
    return None if key is None else key.owner


async def administrator(request: Request, service: TheService) -> None:
    """Raise problem 401 without a valid key and 403 if the key is not an admin key."""
    key = _known_key(request, service)
    if key is not None and not key.admin:
        raise Problem(403, "not_allowed", f"key {key.name} may not do this: use a key with admin = true")


async def monitor(request: Request, service: TheService) -> None:
    """Raise problem 401 without a valid key, unless the settings open monitoring to everyone."""
    if not service.settings.open_monitoring:
        _known_key(request, service)


Caller = Annotated[str | None, Depends(caller)]
Administrator = Annotated[None, Depends(administrator)]
Monitor = Annotated[None, Depends(monitor)]
