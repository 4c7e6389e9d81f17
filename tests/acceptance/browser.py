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

PATIENCE_MS = 120_000
CHROMIUM = shutil.which("chromium")
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--disable-background-networking",
    "--disable-sync",
]


class Browser:
    """A browser whose pages wait for as long as a busy machine may need."""

    def __init__(self, running: Any) -> None:
        self._running = running

    def new_context(self, **options: Any) -> Any:
        context = self._running.new_context(**options)
        context.set_default_timeout(PATIENCE_MS)
        return context

    def new_page(self, **options: Any) -> Any:
        return self.new_context(**options).new_page()


@contextmanager
def chromium(*flags: str) -> Iterator[Browser]:
    """A browser with these flags more; it ends with the block."""
    sync_api = pytest.importorskip("playwright.sync_api", reason="the playwright package is not installed")
    sync_api.expect.set_options(timeout=PATIENCE_MS)
    with sync_api.sync_playwright() as playwright:
        arguments = [*FLAGS, *flags]
        running = playwright.chromium.launch(executable_path=CHROMIUM, args=arguments, timeout=PATIENCE_MS)
        yield Browser(running)
        running.close()


@contextmanager
def api_alone(settings: Settings) -> Iterator[str]:
    """The API without workers; one device has reported, and counts as alive until the end. Its address."""
    settings = settings.model_copy(update={"heartbeat_seconds": 3600.0})
    server = build_server(create_app(settings))
    listener = socket.create_server(("127.0.0.1", 0))
    thread = threading.Thread(target=server.run, args=([listener],), daemon=True)
    thread.start()
    wait_for(lambda: server.started, 120)
    with closing(open_store(settings)) as store:
        memory = {"total_bytes": 8 * 2**30, "free_bytes": 6 * 2**30, "own_bytes": 2**30}
        store.register_worker("w", {"name": "cpu", "kind": "cpu", "capacity_bytes": 7 * 2**30, **memory})
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(20)
        listener.close()
