"""GET, POST and DELETE /session: let the page use an API key by a cookie that scripts cannot read."""

from collections.abc import AsyncIterator
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request, Response

from app.api.access import COOKIE, Caller, checked_key
from app.api.dependencies import Prefix, TheService
from app.api.fairness.clients import current_client
from app.api.problems import Problem, documented
from app.api.requests.bodies import from_json, read_body
from app.api.requests.schemas import SESSION_BODY
from app.api.response_schemas import SESSION, answer
from app.jobs import Json

router = APIRouter(tags=["service"])
LIFETIME_SECONDS = 30 * 24 * 3600
MAX_BODY_BYTES = 4096


async def _fields(request: Request, service: TheService) -> AsyncIterator[dict[str, Any]]:
    with service.shares.body_memory.share(current_client()) as share:
        yield from_json(await read_body(request, MAX_BODY_BYTES, share))


@router.get(
    "/session",
    summary="The caller's key and rights",
    responses={**answer(SESSION), **documented(401)},
)
def see_session(service: TheService, owner: Caller) -> Json:
    """Return whether an API key is required, the name of the caller's key, and whether it is an admin key.

    Also whether the files of this service's videos may say how they were made.
    """
    key = service.keys.of_owner(owner)
    return {
        "needs_key": bool(service.keys),
        "key_name": None if key is None else key.name,
        "admin": key is None or key.admin,
        "embed_metadata": service.settings.embed_metadata,
    }


@router.post(
    "/session",
    status_code=204,
    summary="Store an API key in a cookie",
    responses=documented(400, 401, 408, 413, 422, 429, 503),
    openapi_extra=SESSION_BODY,
)
def open_session(
    request: Request,
    response: Response,
    service: TheService,
    prefix: Prefix,
    fields: Annotated[dict[str, Any], Depends(_fields)],
) -> None:
    """Set a cookie that holds the key. Scripts and other sites cannot read it."""
    key = fields.get("key")
    if not isinstance(key, str):
        raise Problem(422, "missing_field", 'send the key as {"key": "..."}')
    checked_key(request, service, key, "the API key is unknown: check it, or ask the operator for one")
    response.set_cookie(
        COOKIE,
        key,
        max_age=LIFETIME_SECONDS,
        path=prefix or "/",  # another service of this host has its own
        httponly=True,
        samesite="strict",
        secure=request.url.scheme == "https",
    )


@router.delete("/session", status_code=204, summary="Remove the cookie")
def close_session(response: Response, prefix: Prefix) -> None:
    """Remove the cookie."""
    response.delete_cookie(COOKIE, path=prefix or "/")
