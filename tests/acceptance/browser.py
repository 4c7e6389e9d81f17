"""A real Chromium, and the API alone for pages that need no worker."""

import shutil
import socket
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from typing import Any

import pytest
from waiting import wait_for

from app.api import create_app
from app.api.server import build_server
from app.config import Settings
from app.store import open_store

CHROMIUM = shutil.which("chromium")
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--disable-background-networking",
    "--disable-sync",
]


@contextmanager
def chromium(*flags: str) -> Iterator[Any]:
    """A browser with these flags more; it ends with the block."""
    sync_api = pytest.importorskip("playwright.sync_api", reason="the playwright package is not installed")
    with sync_api.sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=CHROMIUM, args=[*FLAGS, *flags])
        yield running
        running.close()


@contextmanager
def api_alone(settings: Settings) -> Iterator[str]:
    """The API without workers; one device has reported. Its address."""
    server = build_server(create_app(settings))
    listener = socket.create_server(("127.0.0.1", 0))
    thread = threading.Thread(target=server.run, args=([listener],), daemon=True)
    thread.start()
    wait_for(lambda: server.started, 60)
    with closing(open_store(settings)) as store:
        memory = {"total_bytes": 8 * 2**30, "free_bytes": 6 * 2**30, "own_bytes": 2**30}
        store.register_worker("w", {"name": "cpu", "kind": "cpu", "capacity_bytes": 7 * 2**30, **memory})
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(20)
        listener.close()
