"""What a client is told if its request is still in progress when the service stops."""

import logging
import socket
import threading
from pathlib import Path

import pytest
from served import served

from app.api import create_app, server
from app.config import Settings


@pytest.mark.parametrize("path", ["/slow", "/v1/slow"])
def test_a_request_that_outlives_the_grace_time_is_told_to_come_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, path: str
) -> None:
    monkeypatch.setattr(server, "GRACE_SECONDS", 0)
    app = create_app(Settings(data_dir=tmp_path))
    begun, released = threading.Event(), threading.Event()

    def slow() -> None:
        begun.set()
        released.wait(60)

    app.add_api_route(path, slow)
    with socket.socket() as client:
        client.settimeout(60)
        with caplog.at_level(logging.INFO), served(app) as address:
            client.connect(address)
            client.sendall(f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n".encode())
            assert begun.wait(60)
            threading.Timer(5, released.set).start()  # the server waits for its threads in the end
        answer = client.recv(65536)
    assert answer.startswith(b"HTTP/1.1 503")
    assert b"shutting_down" in answer
    assert b"retry-after" in answer.lower()
    assert [record for record in caplog.records if record.exc_info] == []
