"""Who may call, and whose jobs are whose.

Without keys in the settings everyone may call. A browser, which cannot put headers on a video or an event
stream, hands its key in once and gets it back as a cookie that scripts and other sites cannot read.
"""

from typing import Annotated

from fastapi import Depends, Request

from app.api.dependencies import Service, TheService
from app.api.problems import Problem
from app.jobs import JobSpec
from app.service.keys import ApiKey

COOKIE = "framefit_key"


def key_in(request: Request) -> str | None:
    """The key a request carries: bearer token, X-API-Key, or the page's cookie."""
    scheme, _, token = request.headers.get("authorization", "").partition(" ")
    if scheme.lower() == "bearer" and token:
        return token.strip()
    return request.headers.get("x-api-key") or request.cookies.get(COOKIE)


def _known_key(request: Request, service: Service) -> ApiKey | None:
    if not service.keys:
        return None
    given = key_in(request)
    found = None if given is None else service.keys.find(given)
    if found is None:
        message = "an API key is needed: send it as Authorization: Bearer KEY"
        raise Problem(401, "unauthorized", message, headers={"WWW-Authenticate": "Bearer"})
    return found


async def caller(request: Request, service: TheService) -> str | None:
    """The caller's owner name, None where no keys are set; problem 401 for a missing or wrong key."""
    key = _known_key(request, service)
    return None if key is None else key.owner


async def administrator(request: Request, service: TheService) -> None:
    """Problem 401 or 403 unless the caller may do what concerns everyone."""
    key = _known_key(request, service)
    if key is not None and not key.admin:
        raise Problem(403, "not_allowed", f"key {key.name} may not do this; a key with admin = true may")


Caller = Annotated[str | None, Depends(caller)]
Administrator = Annotated[None, Depends(administrator)]


def check_key_limits(service: Service, owner: str | None, spec: JobSpec) -> None:
    """Refuse a video that is larger than the caller's key allows."""
    key = service.keys.of_owner(owner)
    asked = spec.width * spec.height * spec.num_frames
    if key is not None and key.max_pixels is not None and asked > key.max_pixels:
        message = (
            f"width x height x num_frames is {asked:,}; key {key.name} may ask for at most {key.max_pixels:,}"
        )
        raise Problem(422, "over_key_limit", message, data={"pixels": asked, "limit": key.max_pixels})
