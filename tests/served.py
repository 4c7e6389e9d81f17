"""The API behind a real socket, in a thread of the test: for what no client without a network can show."""

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from fastapi import FastAPI

from app.api.server import build_server


@contextmanager
def served(app: FastAPI, *, send_bytes: int | None = None, **options: Any) -> Iterator[tuple[str, int]]:
    """Run the app until the end of the block; gives host and port.

    `send_bytes`: what the system keeps for a client that does not read, instead of some megabytes.
    """
    listener = socket.create_server(("127.0.0.1", 0))
    if send_bytes is not None:  # accepted connections inherit it
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, send_bytes)
    server = build_server(app, **options)
    thread = threading.Thread(target=server.run, args=([listener],), daemon=True)
    thread.start()
    deadline = time.monotonic() + 120
    while not server.started:
        assert thread.is_alive(), "the server has ended"
        assert time.monotonic() < deadline, "the server does not start"
        time.sleep(0.01)
    try:
        yield listener.getsockname()
    finally:
        server.should_exit = True
        thread.join(20)
        listener.close()
