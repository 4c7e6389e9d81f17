"""The service's OpenAPI document: FastAPI's, with names for schemas, keys, and the table of error codes."""

import threading
from collections.abc import Sequence

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from fastapi.responses import Response
from starlette.routing import BaseRoute

from app.api.dependencies import Prefix
from app.api.documents.components import with_names
from app.api.documents.openapi_30 import in_version_30
from app.api.documents.operations import add_files, add_security
from app.api.documents.served import ServedDocument
from app.jobs import Json

DESCRIPTION = (
    "An error is a problem document (RFC 9457) with a stable `code`; the schemas `ErrorCode` and "
    "`JobErrorCode` list every code with its meaning and remedy. With API keys set, send one as "
    "`Authorization: Bearer KEY`."
)


def install(app: FastAPI, routes: Sequence[BaseRoute]) -> None:
    """Let the app serve this document. `routes` are those of its routers."""
    lock = threading.Lock()

    def openapi() -> Json:
        with lock:
            if app.openapi_schema is None:
                app.openapi_schema = _document(app, routes)
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]  # as FastAPI's documentation has it
    served = ServedDocument(openapi)
    app.state.reference_document = ServedDocument(lambda: in_version_30(openapi()))

    async def serve(prefix: Prefix) -> Response:
        return await served.answer(prefix or None)

    app.add_api_route("/openapi.json", serve, include_in_schema=False)


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
