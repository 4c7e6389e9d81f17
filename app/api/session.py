"""POST /session and DELETE /session: the page's way to use an API key without scripts ever holding it."""

from typing import Annotated

from fastapi import APIRouter, Body, Request, Response

from app.api.access import COOKIE
from app.api.problems import Problem, documented
from app.api.service import TheService

router = APIRouter(tags=["service"])
LIFETIME_SECONDS = 30 * 24 * 3600
Key = Annotated[str, Body(embed=True, max_length=500)]


@router.post("/session", status_code=204, summary="Keep a key as a cookie", responses=documented(401, 422))
def open_session(key: Key, request: Request, response: Response, service: TheService) -> None:
    """Answers with a cookie that holds the key, out of the reach of scripts and of other sites."""
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
