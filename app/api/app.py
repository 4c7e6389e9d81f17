"""The web application: routes, problem documents, headers, the page. Everything it shares is in `Service`."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import anyio.to_thread
from fastapi import FastAPI, Request
from fastapi.responses import FileResponse, Response
from fastapi.staticfiles import StaticFiles

from adaptive.version import __version__
from app.admission import LoadProfile
from app.api import jobs, openai, problems, session, submit, system
from app.api.service import build_service
from app.config import Settings
from app.profiles import load as load_stored_profile

STATIC = Path(__file__).with_name("static")
THREADS = 64
SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})
HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
}
PAGE_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; "
    "media-src 'self' blob:; connect-src 'self'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'"
)


def create_app(settings: Settings, *, load_profile: LoadProfile | None = None) -> FastAPI:
    """The API over one database; `load_profile` finds a model's stored memory profile."""
    service = build_service(settings, load_profile or (lambda entry: load_stored_profile(settings, entry)))

    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        anyio.to_thread.current_default_thread_limiter().total_tokens = THREADS
        await asyncio.to_thread(service.start)
        try:
            yield
        finally:
            await asyncio.to_thread(service.stop)

    app = FastAPI(
        title="Framefit",
        version=__version__,
        summary="Image to video, decoded in the memory that is free.",
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
    )
    app.state.service = service
    problems.install(app)
    app.add_exception_handler(jobs.StreamEnded, jobs.no_more_events)
    for module in (submit, jobs, openai, system, session):
        app.include_router(module.router)
    app.mount("/static", StaticFiles(directory=STATIC), name="static")
    app.add_api_route("/", _page, include_in_schema=False, response_class=FileResponse)
    app.middleware("http")(_add_headers)
    return app


def _page() -> FileResponse:
    headers = {"Content-Security-Policy": PAGE_POLICY, "Cache-Control": "no-cache"}
    return FileResponse(STATIC / "index.html", media_type="text/html; charset=utf-8", headers=headers)


async def _add_headers(request: Request, call_next: Callable[[Request], Awaitable[Response]]) -> Response:
    # A page of another site may not make a visitor's browser work this service. Only browsers send the
    # header.
    foreign = request.headers.get("sec-fetch-site") in ("cross-site", "same-site")
    if foreign and request.method not in SAFE_METHODS:
        message = "a page of another site may not do this"
        response: Response = problems.Problem(403, "cross_site", message).response()
    else:
        response = await call_next(request)
    for name, value in HEADERS.items():
        response.headers.setdefault(name, value)
    return response
