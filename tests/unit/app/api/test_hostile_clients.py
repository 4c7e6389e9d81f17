"""One client cannot make the API deaf to another: each kind of hostile client once, over real sockets.

Clients come from addresses of 127.0.0.0/8. 127.0.0.1 is that of a trusted proxy.
"""

import io
import json
import select
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from fastapi import FastAPI
from PIL import Image
from served import served
from waiting import wait_for

from app.api import create_app, server
from app.config import Settings
from app.media import images
from app.media.images import LARGE_PIXELS

HOSTILE, OTHER, THIRD = "127.0.0.2", "127.0.0.3", "127.0.0.4"
SECONDS = 60
KEYS = ("a" * 20, "b" * 20)
GET = "GET {} HTTP/1.1\r\nHost: 127.0.0.1\r\n"
UPLOAD = (
    "POST /generate HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
    "Expect: 100-continue\r\nContent-Length: {}\r\n"
)


def picture(size: tuple[int, int] = (64, 64)) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", size, (9, 99, 200)).save(file, "PNG")
    return file.getvalue()


def post(image: bytes) -> bytes:
    fields = {"prompt": "x", "model": "tiny"}
    parts = [f'--b\r\nContent-Disposition: form-data; name="{k}"\r\n\r\n{v}\r\n' for k, v in fields.items()]
    file = '--b\r\nContent-Disposition: form-data; name="image"; filename="a"\r\n\r\n'
    body = "".join([*parts, file]).encode() + image + b"\r\n--b--\r\n"
    head = "POST /generate HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: multipart/form-data; boundary=b\r\n"
    return f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body


class Clients:
    """Connections to one service, from any address; all are closed at the end."""

    def __init__(self, address: tuple[str, int], closing: ExitStack) -> None:
        self._address = address
        self._closing = closing

    def connect(
        self, source: str, request: bytes | str = b"", *, receive_bytes: int | None = None
    ) -> socket.socket:
        """A connection on which a request was sent, or the beginning of one."""
        connection = self._closing.enter_context(socket.socket())
        connection.settimeout(SECONDS)
        if receive_bytes is not None:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_bytes)
        connection.bind((source, 0))
        connection.connect(self._address)
        connection.sendall(request.encode() if isinstance(request, str) else request)
        return connection

    def begin_upload(self, source: str, size: int, sent: int = 1, headers: str = "") -> socket.socket:
        """A connection on which the service waits for the rest of a body."""
        connection = self.connect(source, UPLOAD.format(size) + headers + "\r\n")
        assert connection.recv(4096).startswith(b"HTTP/1.1 100")
        connection.sendall(b"x" * sent)
        return connection

    def ask(self, source: str, request: bytes | str) -> tuple[int, dict[str, str], dict[str, object]]:
        """Status, headers and JSON of the answer to a whole request."""
        return answer(self.connect(source, request))

    def health(self, source: str) -> int:
        """The status of GET /healthz."""
        return self.ask(source, GET.format("/healthz") + "\r\n")[0]


def answer(connection: socket.socket) -> tuple[int, dict[str, str], dict[str, object]]:
    received = b""
    while b"\r\n\r\n" not in received:
        data = connection.recv(65536)
        assert data, f"closed without an answer: {received!r}"
        received += data
    head, _, body = received.partition(b"\r\n\r\n")
    first, *lines = head.decode("latin-1").split("\r\n")
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    while len(body) < int(headers.get("content-length", 0)):
        body += connection.recv(65536)
    return int(first.split()[1]), headers, json.loads(body) if "json" in headers["content-type"] else {}


def is_closed(connection: socket.socket) -> bool:
    """Whether the server has closed the connection, without reading from it."""
    watched = select.poll()
    watched.register(connection, select.POLLRDHUP)
    return bool(watched.poll(0))


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Clients]]:
    """Starts a service with these settings."""
    with ExitStack() as closing:

        def one(app: FastAPI | None = None, send_bytes: int | None = None, **settings: object) -> Clients:
            app = app or create_app(Settings(data_dir=tmp_path, **settings))  # type: ignore[arg-type]
            return Clients(closing.enter_context(served(app, send_bytes=send_bytes)), closing)

        yield one


Start = Callable[..., Clients]


def test_silent_connections_give_way_to_new_ones(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "MAX_CONNECTIONS", 20)
    clients = start(client_share=1.0)
    silent = [clients.connect(source) for source in (HOSTILE, THIRD) for _ in range(15)]
    assert clients.health(OTHER) == 200
    wait_for(lambda: is_closed(silent[0]), SECONDS)
    assert not is_closed(silent[-1])


def test_a_client_beyond_its_share_of_connections_is_told_so(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "MAX_CONNECTIONS", 20)
    clients = start()
    busy = [clients.begin_upload(HOSTILE, 1000) for _ in range(10)]
    status, headers, problem = answer(clients.connect(HOSTILE))
    assert (status, problem["code"], headers["retry-after"]) == (429, "client_share_reached", "2")
    assert (problem["resource"], problem["used"], problem["limit"]) == ("connections", 10, 10)
    assert clients.health(OTHER) == 200
    assert not any(map(is_closed, busy))


def test_if_all_connections_are_busy_one_of_the_client_with_most_gives_way(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "MAX_CONNECTIONS", 16)
    clients = start()
    busy = [clients.begin_upload(source, 1000) for source in (HOSTILE, THIRD) * 8]
    assert clients.health(OTHER) == 200
    assert sum(map(is_closed, busy)) == 1


def test_a_full_service_refuses_a_client_that_has_as_much_as_others(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "MAX_CONNECTIONS", 2)
    clients = start()
    for source in (HOSTILE, THIRD):
        clients.begin_upload(source, 1000)
    status, headers, problem = answer(clients.connect(OTHER))
    assert (status, problem["code"], headers["retry-after"]) == (503, "too_many_connections", "2")
    assert (problem["used"], problem["limit"]) == (2, 2)


def test_a_key_cannot_take_the_connections_of_another_behind_one_proxy(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "MAX_CONNECTIONS", 20)
    clients = start(api_keys=KEYS)
    for _ in range(10):
        clients.begin_upload("127.0.0.1", 1000, headers=f"X-API-Key: {KEYS[0]}\r\n")
    jobs = GET.format("/jobs") + "X-API-Key: {}\r\n\r\n"
    status, _, problem = clients.ask("127.0.0.1", jobs.format(KEYS[0]))
    assert (status, problem["code"]) == (429, "client_share_reached")
    assert clients.ask("127.0.0.1", jobs.format(KEYS[1]))[0] == 200


@pytest.mark.parametrize("path", ["/openapi.json", "/static/style.css"])
def test_a_client_that_reads_nothing_is_cut_off(
    start: Start, monkeypatch: pytest.MonkeyPatch, path: str
) -> None:
    monkeypatch.setattr(server, "WRITE_SECONDS", 0.2)
    clients = start(send_bytes=4096)
    # A pipeline of requests: the server stops after the first that does not fit the buffers.
    hog = clients.connect(HOSTILE, (GET.format(path) + "\r\n") * 100, receive_bytes=4096)
    wait_for(lambda: is_closed(hog), SECONDS)
    assert clients.health(OTHER) == 200


def test_a_client_that_reads_slowly_gets_all(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "WRITE_SECONDS", 5.0)
    clients = start(send_bytes=4096)
    requests = 10
    slow = clients.connect(HOSTILE, (GET.format("/openapi.json") + "\r\n") * requests, receive_bytes=4096)
    answers, tail = 0, b""
    while answers < requests:
        data = slow.recv(1 << 20)
        assert data, f"cut off after {answers} answers"
        answers += (tail + data).count(b"HTTP/1.1 200") - tail.count(b"HTTP/1.1 200")
        tail = data[-20:]


def test_an_event_stream_that_nobody_reads_is_cut_off(
    start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "WRITE_SECONDS", 0.2)
    app = create_app(Settings(data_dir=tmp_path, poll_seconds=0.02))
    clients = start(app, send_bytes=4096)
    store = app.state.service.store
    status, _, job = clients.ask(OTHER, post(picture()))
    assert status == 202
    hog = clients.connect(HOSTILE, GET.format("/events") + "\r\n", receive_bytes=4096)
    hog.recv(15)  # the head: it follows the events from now on

    def queue_again() -> bool:
        for _ in range(50):
            store.cancel(job["id"])
            store.queue_again(job["id"], changes={}, plan=None, needed_bytes=1, why="retry")
        return is_closed(hog)

    wait_for(queue_again, 2 * SECONDS)


def test_a_client_has_its_share_of_event_streams(start: Start) -> None:
    clients = start(client_share=0.01)
    stream = GET.format("/events") + "\r\n"
    for _ in range(2):
        assert clients.ask(HOSTILE, stream)[0] == 200
    status, _, problem = clients.ask(HOSTILE, stream)
    assert (status, problem["code"], problem["resource"]) == (429, "client_share_reached", "event streams")
    assert clients.ask(OTHER, stream)[0] == 200


def test_slow_uploads_of_one_key_do_not_shut_out_another(start: Start) -> None:
    clients = start(api_keys=KEYS, max_body_bytes=100_000)
    for _ in range(8):
        clients.begin_upload(HOSTILE, 100_000, 99_000, f"X-API-Key: {KEYS[0]}\r\n")
    whole = post(bytes(30_000)).replace(b"\r\nHost", f"\r\nX-API-Key: {KEYS[1]}\r\nHost".encode(), 1)
    assert clients.ask(OTHER, whole)[0] == 422  # read to its end: it is no picture


def test_slow_uploads_of_many_clients_give_way_to_one_more(start: Start) -> None:
    clients = start(max_body_bytes=100_000)
    uploads = [clients.begin_upload(f"127.0.1.{number}", 100_000, 99_000) for number in range(1, 9)]

    def gave_way() -> list[socket.socket]:
        # The memory is full only when the service has received what the clients sent.
        assert clients.ask(OTHER, post(bytes(30_000)))[0] == 422
        return select.select(uploads, [], [], 0)[0]

    assert answer(wait_for(gave_way, SECONDS)[0])[2]["code"] == "busy"


def test_pictures_that_decode_slowly_keep_nobody_waiting(start: Start) -> None:
    """More posts than threads, while no large picture can be decoded."""
    clients = start()
    large = post(picture((2100, LARGE_PIXELS // 2000)))
    with ExitStack() as held:
        for _ in range(images.LARGE_AT_ONCE):
            held.enter_context(images._large_slots)
        waiting = [clients.connect(HOSTILE, large) for _ in range(80)]
        assert clients.ask(OTHER, post(picture()))[0] == 202
        assert [clients.health(OTHER) for _ in range(3)] == [200] * 3
        assert clients.ask(OTHER, GET.format("/readyz") + "\r\n")[0] == 503  # no worker
        assert clients.ask(OTHER, GET.format("/metrics") + "\r\n")[0] in (200, 503)  # before it has counted
    statuses = [answer(each)[0] for each in waiting]
    assert set(statuses) == {202, 429}
    assert statuses.count(202) >= images.LARGE_AT_ONCE


def test_wrong_keys_are_limited(start: Start) -> None:
    clients = start(api_keys=KEYS)

    def sign_in(source: str, key: str) -> tuple[int, dict[str, str], dict[str, object]]:
        body = json.dumps({"key": key})
        head = f"POST /session HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: {len(body)}\r\n\r\n"
        return clients.ask(source, head + body)

    for number in range(10):
        assert sign_in(HOSTILE, f"guess-{number}")[0] == 401
    status, headers, problem = sign_in(HOSTILE, KEYS[0])
    assert (status, problem["code"]) == (429, "too_many_wrong_keys")
    assert int(headers["retry-after"]) > 0
    body = json.dumps({"key": KEYS[0]})
    head = f"POST /session HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: {len(body)}\r\n\r\n"
    other = clients.connect(OTHER, head + body)
    assert other.recv(12) == b"HTTP/1.1 204"


FEW_FILES = """
import resource, socket, sys
from pathlib import Path
resource.setrlimit(resource.RLIMIT_NOFILE, (200, 400))
from app.api import create_app
from app.api.server import build_server
from app.config import Settings
from app.service.logs import configure
configure("info")
listener = socket.create_server(("127.0.0.1", 0))
server = build_server(create_app(Settings(data_dir=Path(sys.argv[1]))))
print(listener.getsockname()[1], resource.getrlimit(resource.RLIMIT_NOFILE)[0], flush=True)
server.run([listener])
"""


def test_silent_connections_beyond_the_limit_of_open_files_leave_the_api_answering(tmp_path: Path) -> None:
    with (
        subprocess.Popen(
            [sys.executable, "-c", FEW_FILES, str(tmp_path)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        ) as process,
        ExitStack() as closing,
    ):
        assert process.stdout is not None
        assert process.stderr is not None
        port, files = map(int, process.stdout.readline().split())
        assert files == 400  # raised to the hard limit
        clients = Clients(("127.0.0.1", port), closing)
        try:
            silent = [clients.connect(HOSTILE) for _ in range(600)]
            for _ in range(3):
                assert clients.health(OTHER) == 200
            wait_for(lambda: is_closed(silent[0]), SECONDS)
        finally:
            process.terminate()
        log = process.stderr.read()
    assert "Traceback" not in log
    assert log.count("connections_full") == 1
    assert len(log.splitlines()) < 20
