"""GET /docs: the reference of the API, shown by Swagger UI from its package, and the page for operators.

The pages have policies of their own: the reference runs the scripts of this service only and speaks with this
service only, the page for operators runs none.
"""

from pathlib import Path

from fastapi import APIRouter, Request
from fastapi.responses import FileResponse, HTMLResponse, Response

from app.api.dependencies import Prefix
from app.api.documents.served import ServedDocument
from app.api.problems import Problem

PAGE = Path(__file__).parents[1] / "static" / "reference.html"
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
    "base-uri 'self'; form-action 'none'; frame-ancestors 'none'"
)
# Alerts link to it: it must be readable when nothing but this process works.
OPERATING = PAGE.with_name("operating.html")
TEXT_POLICY = (
    "default-src 'none'; style-src 'self'; img-src 'self'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'"
)
FILES = {"swagger-ui.css": "text/css", "swagger-ui-bundle.js": "text/javascript"}

router = APIRouter(include_in_schema=False)


@router.get("/docs")
def reference(prefix: Prefix) -> Response:
    """Return the page. Its addresses are relative to the service's root, under whatever path that lies."""
    page = PAGE.read_text(encoding="utf-8").replace("<head>", f'<head>\n  <base href="{prefix}/">', 1)
    return HTMLResponse(page, headers={"Content-Security-Policy": POLICY, "Cache-Control": "no-cache"})


@router.get("/docs/openapi.json")
async def document(request: Request, prefix: Prefix) -> Response:
    """Return the OpenAPI document in the version that Swagger UI knows."""
    served: ServedDocument = request.app.state.reference_document
    return await served.answer(f"{prefix}/")


@router.get("/docs/operating")
def operating() -> Response:
    """Return the page "Operating", with a runbook for each alert. Its addresses are relative to its own."""
    headers = {"Content-Security-Policy": TEXT_POLICY, "Cache-Control": "no-cache"}
    return FileResponse(OPERATING, media_type="text/html; charset=utf-8", headers=headers)


@router.get("/docs/{name}")
def file(name: str) -> Response:
    """Return one of Swagger UI's files."""
    from swagger_ui_bundle import swagger_ui_path

    if name not in FILES:
        raise Problem(404, "not_found", "the reference has no such file")
    return FileResponse(Path(swagger_ui_path) / name, media_type=FILES[name])
