"""The service's OpenAPI document: FastAPI's, with names for schemas, keys, and the table of error codes."""

from collections.abc import Sequence

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from starlette.routing import BaseRoute

from app.api.documents.components import with_names
from app.api.documents.operations import add_files, add_security
from app.jobs import Json

DESCRIPTION = (
    "An error is a problem document (RFC 9457) with a stable `code`; the schemas `ErrorCode` and "
    "`JobErrorCode` list every code with its meaning and remedy. With API keys set, send one as "
    "`Authorization: Bearer KEY`."
)


def install(app: FastAPI, routes: Sequence[BaseRoute]) -> None:
    """Let the app serve this document. `routes` are those of its routers."""

    def openapi() -> Json:
        if app.openapi_schema is None:
            app.openapi_schema = _document(app, routes)
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]  # as FastAPI's documentation has it


def _document(app: FastAPI, routes: Sequence[BaseRoute]) -> Json:
    document = get_openapi(
        title=app.title,
        version=app.version,
        openapi_version=app.openapi_version,
        summary=app.summary,
        description=DESCRIPTION,
        routes=app.routes,
    )
    add_security(document, routes)
    add_files(document)
    return with_names(document)
