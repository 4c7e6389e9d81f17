"""GET, POST and DELETE /session: the page's way to use an API key without scripts ever holding it."""

from collections.abc import AsyncIterator
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request, Response

from app.api.access import COOKIE, Caller
from app.api.dependencies import TheService
from app.api.problems import Problem, documented
from app.api.requests.bodies import from_json, read_body
from app.api.requests.schemas import SESSION_BODY
from app.api.response_schemas import SESSION, answer
from app.jobs import Json

router = APIRouter(tags=["service"])
LIFETIME_SECONDS = 30 * 24 * 3600
MAX_BODY_BYTES = 4096


async def _fields(request: Request, service: TheService) -> AsyncIterator[dict[str, Any]]:
    with service.body_memory.share() as share:
        yield from_json(await read_body(request, MAX_BODY_BYTES, share))


@router.get(
    "/session",
    summary="Who the caller is taken for",
    responses={**answer(SESSION), **documented(401)},
)
def see_session(service: TheService, owner: Caller) -> Json:
    """Whether keys are needed, the caller's key by name, and whether it may do what concerns everyone."""
    key = service.keys.of_owner(owner)
    return {
        "needs_key": bool(service.keys),
        "key_name": None if key is None else key.name,
        "admin": key is None or key.admin,
    }


@router.post(
    "/session",
    status_code=204,
    summary="Keep a key as a cookie",
    responses=documented(400, 401, 408, 413, 422, 503),
    openapi_extra=SESSION_BODY,
)
def open_session(
    request: Request,
    response: Response,
    service: TheService,
    fields: Annotated[dict[str, Any], Depends(_fields)],
) -> None:
    """Answers with a cookie that holds the key, out of the reach of scripts and of other sites."""
    key = fields.get("key")
    if not isinstance(key, str):
        raise Problem(422, "missing_field", 'send the key as {"key": "..."}')
    if service.keys.find(key) is None:
        raise Problem(401, "unauthorized", "the key is not known")
    response.set_cookie(
        COOKIE,
        key,
        max_age=LIFETIME_SECONDS,
        httponly=True,
        samesite="strict",
        secure=request.url.scheme == "https",
    )


@router.delete("/session", status_code=204, summary="Forget the cookie")
def close_session(response: Response) -> None:
    """Removes the cookie."""
    response.delete_cookie(COOKIE)
