"""Webhooks: signed, retried with growing pauses, and never sent where a stranger should not make us call."""

import http.server
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from app.config import Settings
from app.jobs import JobSpec, JobStatus
from app.service.keys import KeyRing
from app.service.webhooks import SigningKeys, WebhookRefused, Webhooks, call, check_url, post, resolve, sign
from app.service.webhooks.sender import RETRY_SECONDS
from app.store import JobStore
from app.store.deliveries import Attempt

SECRET = "a secret of the operator"
KEYS = SigningKeys(SECRET, KeyRing())


class Receiver(http.server.ThreadingHTTPServer):
    """Keeps what it is sent and answers with the next of `statuses`, 200 when they are used up."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.statuses: list[int] = []
        self.received: list[tuple[dict[str, str], bytes]] = []
        self.arrived = threading.Event()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/hook?a=1"


class Handler(http.server.BaseHTTPRequestHandler):
    server: Receiver

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        self.server.received.append(
            ({k.lower(): v for k, v in self.headers.items()} | {"path": self.path}, body)
        )
        status = self.server.statuses.pop(0) if self.server.statuses else 200
        self.send_response(status)
        self.send_header("Location", self.server.url)
        self.send_header("Content-Length", "0")
        self.end_headers()
        self.server.arrived.set()

    def log_message(self, *_args: Any) -> None:
        pass


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with Receiver() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def view(job_id: str) -> dict[str, Any]:
    return {"id": job_id, "status": "succeeded"}


INWARD = [
    "http://127.0.0.1/",
    "http://127.1/",
    "http://2130706433/",
    "http://0x7f.1/",
    "http://0177.0.0.1/",
    "http://017700000001/",
    "http://[::]/",
    "http://[::127.0.0.1]/",
    "http://[fe80::1%25eth0]/",
    "http://[::ffff:169.254.169.254]/",
    "http://0.0.0.0/",
    "http://localhost:8000/generate",
    "http://LOCALHOST./",
    "http://x.localhost/",
    "http://10.0.0.1/",
    "http://192.168.1.1/",
    "http://172.16.0.1/",
    "http://100.64.0.1/",
    "http://169.254.169.254/latest/meta-data/",
    "http://[::1]/",
    "http://[::ffff:127.0.0.1]/",
    "http://[::ffff:10.0.0.1]/",
    "http://[64:ff9b::7f00:1]/",
    "http://[2002:7f00:1::]/",
    "http://[fe80::1]/",
    "http://[fc00::1]/",
    "http://224.0.0.1/",
    "http://metadata.internal/",
]


@pytest.mark.parametrize("url", INWARD)
def test_addresses_inside_the_network_are_refused(url: str) -> None:
    with pytest.raises(WebhookRefused) as refusal:
        check_url(url, allow_private=False)
    assert refusal.value.code == "webhook_address_private"
    check_url(url, allow_private=True)


@pytest.mark.parametrize(
    "url",
    [
        "ftp://example.org/",
        "file:///etc/passwd",
        "http://",
        "//example.org/",
        "http://a:b@example.org/",
        "http://example.org:99999/",
        "http://[::1",
        "http://exa mple.org/",
        "http://example.org/\r\nX: y",
        "gopher://x/",
    ],
)
def test_what_is_no_plain_url_is_refused(url: str) -> None:
    with pytest.raises(WebhookRefused, match="webhook_url"):
        check_url(url, allow_private=True)


@pytest.mark.parametrize(
    "url", ["https://example.org/hook", "http://8.8.8.8:8080/", "http://[2606:4700::1111]/"]
)
def test_public_addresses_are_taken(url: str) -> None:
    check_url(url, allow_private=False)


def test_a_name_that_leads_inside_is_refused_when_it_is_looked_up(monkeypatch: pytest.MonkeyPatch) -> None:
    def answers(*addresses: str) -> Callable[..., list[Any]]:
        return lambda *_a, **_k: [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (one, 80)) for one in addresses]

    monkeypatch.setattr(socket, "getaddrinfo", answers("93.184.216.34", "127.0.0.1"))
    with pytest.raises(WebhookRefused) as refusal:
        resolve("http://rebound.example/", allow_private=False)
    assert refusal.value.code == "webhook_address_private"
    monkeypatch.setattr(socket, "getaddrinfo", answers("93.184.216.34"))
    assert resolve("https://good.example/", allow_private=False) == ("93.184.216.34", 443)


def test_redirects_are_not_followed(receiver: Receiver) -> None:
    receiver.statuses = [302]
    assert post(receiver.url, b"{}", {}, allow_private=True) == 302
    assert len(receiver.received) == 1


def test_the_end_of_a_job_is_sent_once_and_signed(
    store: JobStore, make_spec: Callable[..., JobSpec], receiver: Receiver
) -> None:
    job = store.add(make_spec(webhook_url=receiver.url), b"x")
    claim = store.claim("w")
    assert claim is not None
    assert store.take_delivery() is None
    store.finish(job.id, claim.token, status=JobStatus.SUCCEEDED, result={})
    sender = Webhooks(store, KEYS, view, allow_private=True)
    sender.start()
    assert receiver.arrived.wait(timeout=120)
    sender.stop()
    assert store.take_delivery() is None
    ((headers, body),) = receiver.received
    assert headers["path"] == "/hook?a=1"
    message = json.loads(body)
    assert (message["type"], message["data"]["id"]) == ("job.succeeded", job.id)
    expected = sign(SECRET.encode(), headers["webhook-id"], int(headers["webhook-timestamp"]), body)
    assert headers["webhook-signature"] == expected
    assert sign(b"other", headers["webhook-id"], int(headers["webhook-timestamp"]), body) != expected


def test_a_receiver_that_fails_is_asked_again_after_growing_pauses_and_then_let_be(
    store: JobStore, make_spec: Callable[..., JobSpec], receiver: Receiver, clock: Any
) -> None:
    store.cancel(store.add(make_spec(webhook_url=receiver.url), b"x").id)
    sender = Webhooks(store, KEYS, view, allow_private=True)
    receiver.statuses = [500] * 20
    pauses = []
    while delivery := store.take_delivery():
        assert store.take_delivery() is None, "held while it is being made"
        attempt = sender.deliver(delivery)
        store.settle_delivery(delivery.id, attempt)
        pauses.append(attempt.retry_seconds)
        clock.now += attempt.retry_seconds or 0
    assert pauses == [*RETRY_SECONDS, None]


def test_a_refused_connection_is_retried(
    store: JobStore, make_spec: Callable[..., JobSpec], unused_port: int
) -> None:
    store.cancel(store.add(make_spec(webhook_url=f"http://127.0.0.1:{unused_port}/"), b"x").id)
    delivery = store.take_delivery()
    assert delivery is not None
    attempt = Webhooks(store, KEYS, view, allow_private=True).deliver(delivery)
    assert attempt.retry_seconds == RETRY_SECONDS[0]
    refused = Webhooks(store, KEYS, view, allow_private=False).deliver(delivery)
    assert refused == Attempt("the URL leads to an address that is not public"), "refused for good"


def test_a_request_with_a_webhook_needs_a_secret_and_a_public_address(
    client_of: Callable[..., TestClient], tmp_path: Path, picture: bytes
) -> None:
    def code(settings: Settings, url: str) -> Any:
        client = client_of(settings)
        form = {"prompt": "x", "webhook_url": url}
        answer = client.post("/generate", data=form, files={"image": ("a", picture)})
        return answer.json().get("code", answer.status_code)

    assert code(Settings(data_dir=tmp_path / "a"), "https://example.org/") == "webhooks_off"
    signed = Settings(data_dir=tmp_path / "b", webhook_secret=SECRET)
    assert code(signed, "http://169.254.169.254/") == "webhook_address_private"
    assert code(signed, "javascript:alert(1)") == "invalid_webhook_url"
    assert code(signed, "https://example.org/") == 202


def test_a_host_that_changes_its_address_is_called_where_it_was_checked(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    answers = [["93.184.216.34"], ["127.0.0.1"]]
    called: list[tuple[str, int]] = []

    def look_up(*_args: Any, **_more: Any) -> list[Any]:
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (one, 80)) for one in answers.pop(0)]

    def connect(address: tuple[str, int], **_more: Any) -> socket.socket:
        called.append(address)
        raise OSError("far enough")

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    monkeypatch.setattr(socket, "create_connection", connect)
    with pytest.raises(OSError, match="far enough"):
        post("http://rebound.example/", b"", {}, allow_private=False)
    assert called == [("93.184.216.34", 80)]
    assert answers == [["127.0.0.1"]], "looked up once"


def test_a_receiver_that_dribbles_is_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(call, "TIMEOUT_SECONDS", 0.5)
    done = threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def dribble() -> None:
            connection, _ = listener.accept()
            with connection:
                while not done.wait(0.05):
                    try:
                        connection.sendall(b"X")
                    except OSError:
                        return

        receiver = threading.Thread(target=dribble)
        receiver.start()
        started = time.monotonic()
        with pytest.raises(OSError):  # noqa: PT011 - which one depends on where it was cut
            post(f"http://127.0.0.1:{listener.getsockname()[1]}/", b"", {}, allow_private=True)
        assert time.monotonic() - started < 60
        done.set()
        receiver.join()


def test_receivers_that_never_answer_do_not_hold_up_the_others(
    tmp_path: Path, make_spec: Callable[..., JobSpec], receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = JobStore(f"sqlite:///{tmp_path / 'jobs.sqlite3'}")
    store.migrate()
    monkeypatch.setattr(call, "TIMEOUT_SECONDS", 600.0)
    with socket.create_server(("127.0.0.1", 0)) as silent:  # connects, and that is all
        hanging = f"http://127.0.0.1:{silent.getsockname()[1]}/"
        for url in (hanging, hanging, hanging, receiver.url):
            store.cancel(store.add(make_spec(webhook_url=url), b"x").id)
        sender = Webhooks(store, KEYS, view, allow_private=True)
        sender.start()
        assert receiver.arrived.wait(timeout=300), "one after another they would take three times 600 seconds"
    sender.stop()  # the silent receiver has closed its connections
    store.close()
