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
def served(app: FastAPI, **options: Any) -> Iterator[tuple[str, int]]:
    """Run the app until the end of the block; gives host and port."""
    listener = socket.create_server(("127.0.0.1", 0))
    server = build_server(app, **options)
    thread = threading.Thread(target=server.run, args=([listener],), daemon=True)
    thread.start()
    deadline = time.monotonic() + 30
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
