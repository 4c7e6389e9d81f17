"""Documents as bodies of answers: built and encoded once, on a thread.

Both take so long that other requests would wait for it in the event loop.
"""

import asyncio
import json
from collections.abc import Callable

from fastapi.responses import Response

from app.jobs import Json


class ServedDocument:
    """A JSON object as the bodies of answers."""

    def __init__(self, build: Callable[[], Json]) -> None:
        self._build = build
        self._encoded: bytes | None = None

    async def answer(self, server: str | None) -> Response:
        """Return the document, with the address of the server if it is given."""
        body = self._encoded
        if body is None:
            body = self._encoded = await asyncio.to_thread(lambda: encoded(self._build()))
        if server is not None:
            body = body[:-1] + b"," + encoded({"servers": [{"url": server}]})[1:]
        return Response(body, media_type="application/json")


def encoded(document: Json) -> bytes:
    """Return the JSON of an object that has members."""
    return json.dumps(document, ensure_ascii=False, separators=(",", ":")).encode()
