"""The web application: routes, problem documents, headers and the page. Shared objects are in `Service`."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import anyio.to_thread
from fastapi import FastAPI
from fastapi.responses import FileResponse, HTMLResponse, Response
from fastapi.staticfiles import StaticFiles

from adaptive.version import __version__
from app.api import problems
from app.api.access import name_of_key
from app.api.dependencies import Prefix, build_service
from app.api.documents import document, reference
from app.api.documents.operations import operation_id
from app.api.fairness.sharing import FairlyShared
from app.api.middleware.guard import Guard
from app.api.middleware.hosts import OwnHosts
from app.api.middleware.http_metrics import HttpMetrics, Measured
from app.api.middleware.http_rules import HttpRules
from app.api.routes import (
    again,
    batch,
    device_memory,
    events,
    jobs,
    loras,
    openai,
    openai_models,
    session,
    submit,
    system,
)
from app.api.routes.results import archive, files, frames
from app.config import Settings
from app.models import profiles
from app.models.downloads.access import AskHub
from app.scheduling.admission import LoadRequirements
from app.scheduling.usable_profile import LoadProfile

STATIC = Path(__file__).with_name("static")
PAGE_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; "
    "media-src 'self' blob:; connect-src 'self'; base-uri 'self'; form-action 'self'; frame-ancestors 'none'"
)


def create_app(
    settings: Settings,
    *,
    load_profile: LoadProfile | None = None,
    load_requirements: LoadRequirements | None = None,
    ask_hub: AskHub | None = None,
) -> FastAPI:
    """Return the API of one job database.

    `load_profile` and `load_requirements` return a model's memory profile and its other memory requirements.
    By default both are read from the stored profiles. A custom `load_profile` alone means no other
    requirements. `ask_hub` asks the hub before a job is queued whose model is still to be downloaded; None:
    nothing is asked.
    """
    if load_requirements is None:
        load_requirements = (
            partial(profiles.load_requirements, settings) if load_profile is None else lambda _entry: None
        )
    service = build_service(
        settings, load_profile or partial(profiles.load, settings), load_requirements, ask_hub
    )

    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        anyio.to_thread.current_default_thread_limiter().total_tokens = service.shares.threads
        await asyncio.to_thread(service.start)
        try:
            yield
        finally:
            await asyncio.to_thread(service.stop)

    app = FastAPI(
        title="Framefit",
        version=__version__,
        summary="Image-to-video generation, decoded in the memory that is free.",
        lifespan=lifespan,
        responses=problems.documented(422, 429, 503),
        openapi_url=None,  # `document` serves it
        docs_url=None,
        redoc_url=None,
        generate_unique_id_function=operation_id,
    )
    app.state.service = service
    problems.install(app)
    app.add_exception_handler(events.StreamEnded, events.no_more_events)
    # In this order: /jobs/videos.zip is no job.
    modules = (
        submit,
        again,
        batch,
        archive,
        jobs,
        files,
        frames,
        events,
        openai,
        openai_models,
        device_memory,
        system,
        loras,
        session,
        reference,
    )
    routers = [module.router for module in modules]
    for router in routers:
        app.include_router(router)
    app.mount("/static", StaticFiles(directory=STATIC), name="static")
    app.add_api_route("/", _page, include_in_schema=False, response_class=HTMLResponse)
    routes = [route for router in routers for route in router.routes]
    paths = [getattr(route, "path", "/") for route in routes]
    app.state.own_segments = {path.split("/")[1] for path in paths} | {"static"}
    document.install(app, routes)
    # The page, its files and the OpenAPI document are not among the routers' routes.
    others = [route for route in app.routes if hasattr(route, "path_regex")]
    matched = [*routes, *others]
    app.add_middleware(HttpRules, routes=matched)
    app.add_middleware(FairlyShared, turns=service.shares.turns, name_of_key=partial(name_of_key, service))
    app.add_middleware(Guard, hosts=OwnHosts.of(settings))
    measured = HttpMetrics(service.metrics.registry)
    app.add_middleware(Measured, metrics=measured, routes=matched, spans=service.request_spans)
    return app


def _page(prefix: Prefix) -> Response:
    headers = {"Content-Security-Policy": PAGE_POLICY, "Cache-Control": "no-cache"}
    if not prefix:
        return FileResponse(STATIC / "index.html", media_type="text/html; charset=utf-8", headers=headers)
    # The page's addresses are relative. Some proxies serve it without the slash at the end of the prefix.
    page = (STATIC / "index.html").read_text(encoding="utf-8")
    return HTMLResponse(page.replace("<head>", f'<head>\n  <base href="{prefix}/">', 1), headers=headers)
