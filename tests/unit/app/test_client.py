"""The command's HTTP client, against a small server that answers as the service does."""

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from app.client import Client

ANSWERS = ["still being traced", "still being traced", "the hub cannot be reached", None]


class Service(BaseHTTPRequestHandler):
    """Answers with each of `ANSWERS` in turn: 503 with that detail, at the end 202."""

    left: list[str | None]

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        detail = self.left.pop(0)
        body = json.dumps({"id": "a-job"} if detail is None else {"detail": detail}).encode()
        self.send_response(202 if detail is None else 503)
        self.send_header("Retry-After", "0")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def url() -> Iterator[str]:
    Service.left = list(ANSWERS)
    with HTTPServer(("127.0.0.1", 0), Service) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join(120)


def test_who_waits_for_a_model_is_told_each_reason_once(url: str, tmp_path: Path) -> None:
    (tmp_path / "photo.jpg").write_bytes(b"a picture")
    said: list[str] = []
    client = Client(url)
    assert client.submit({"image": tmp_path / "photo.jpg"}, {"prompt": "x"}, said.append)["id"] == "a-job"
    client.close()
    assert said == ["Waiting: still being traced …", "Waiting: the hub cannot be reached …"]
