"""Operation ids, which generated clients take their names from, and the keys that operations ask for."""

from collections.abc import Iterable
from typing import Any

from fastapi.dependencies.models import Dependant
from fastapi.routing import APIRoute
from starlette.routing import BaseRoute

from app.api.access import COOKIE, administrator, caller, monitor
from app.jobs import Json

SCHEMES: dict[str, Json] = {
    "bearer": {"type": "http", "scheme": "bearer", "description": "An API key."},
    "header": {"type": "apiKey", "in": "header", "name": "X-API-Key", "description": "An API key."},
    "session": {
        "type": "apiKey",
        "in": "cookie",
        "name": COOKIE,
        "description": "What `POST /session` sets, for browsers.",
    },
}
# A service without keys asks for none.
SECURITY: list[dict[str, Any]] = [{"bearer": []}, {"header": []}, {"session": []}, {}]
TOO_MANY_WRONG_KEYS = "Too Many Requests"


def operation_id(route: APIRoute) -> str:
    """Return the operation's id: the name of its function, and which API it belongs to if not to our own."""
    return f"openai_{route.name}" if "openai" in route.tags else route.name


def needs_key(route: APIRoute) -> bool:
    """Return whether the route asks for an API key, always or with some settings."""
    return any(each.call in (caller, administrator, monitor) for each in _dependencies(route.dependant))


def _dependencies(dependant: Dependant) -> Iterable[Dependant]:
    for each in dependant.dependencies:
        yield each
        yield from _dependencies(each)


def add_security(document: Json, routes: Iterable[BaseRoute]) -> None:
    """Write into the document which operations need a key, and that wrong keys are limited."""
    document.setdefault("components", {})["securitySchemes"] = SCHEMES
    for route in routes:
        if not isinstance(route, APIRoute) or not needs_key(route):
            continue
        for method in route.methods or ():
            operation = document["paths"].get(route.path_format, {}).get(method.lower())
            if operation is not None:
                operation["security"] = SECURITY
                refused = operation["responses"]["401"]
                operation["responses"].setdefault("429", {**refused, "description": TOO_MANY_WRONG_KEYS})


def add_files(document: Json) -> None:
    """Say of each answer that is a file that it is bytes, also under the general type.

    Generators of clients know no videos and pictures, and would leave the answer out.
    """
    for operations in document["paths"].values():
        for operation in operations.values():
            for response in operation["responses"].values():
                content = response.get("content", {})
                files = [kind for kind in content if kind.startswith(("video/", "image/", "application/zip"))]
                for kind in (*files, *(["application/octet-stream"] if files else ())):
                    content[kind] = {"schema": {"type": "string", "format": "binary"}}
