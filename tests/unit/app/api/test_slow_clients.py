"""Clients that hold on: each gets an answer and the door, over a real socket."""

import contextlib
import json
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from served import served
from waiting import wait_for

from app.api import create_app, server
from app.api.requests import bodies
from app.config import Settings

Connect = Callable[[], socket.socket]
Start = Callable[..., Connect]
SECONDS = 0.3


@pytest.fixture
def start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Start]:
    """Starts a service that waits for so long, and gives what opens connections to it.

    Only what a test is about waits for a fraction of a second: on a busy machine, that is soon over.
    """
    monkeypatch.setattr(server, "MAX_CONNECTIONS", 20)
    with ExitStack() as opened:

        def one(*, head_seconds: float = 60.0, read_seconds: float = 60.0) -> Connect:
            monkeypatch.setattr(server, "HEAD_SECONDS", head_seconds)
            monkeypatch.setattr(bodies, "READ_SECONDS", read_seconds)
            address = opened.enter_context(served(create_app(Settings(data_dir=tmp_path))))
            return lambda: opened.enter_context(socket.create_connection(address, timeout=120))

        yield one


def answer_of(connection: socket.socket) -> tuple[int, dict[str, object]]:
    """Status and body of an answer after which the server closes."""
    received = b""
    while data := connection.recv(65536):
        received += data
    head, _, body = received.partition(b"\r\n\r\n")
    return int(head.split()[1]), json.loads(body)


def dribble(connection: socket.socket, pieces: Iterator[bytes]) -> None:
    """Send a little at a time until the server has had enough."""
    started = time.monotonic()
    for piece in pieces:
        try:
            connection.sendall(piece)
        except OSError:
            break
        if time.monotonic() - started > 200 * SECONDS:
            raise AssertionError("the server goes on listening")
        time.sleep(SECONDS / 10)


def endless(first: bytes, then: bytes) -> Iterator[bytes]:
    yield first
    while True:
        yield then


def test_a_head_that_does_not_end_is_cut_off(start: Start) -> None:
    connect = start(head_seconds=SECONDS)
    silent, slow = connect(), connect()
    dribble(slow, endless(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n", b"X-A: b\r\n"))
    assert answer_of(silent)[1]["code"] == "head_too_slow"


def test_a_body_that_does_not_end_is_cut_off(start: Start) -> None:
    connect = start(read_seconds=SECONDS)
    head = b"POST /generate HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9999\r\n\r\n"
    slow = connect()
    slow.sendall(head + b"{")
    status, body = answer_of(slow)
    assert (status, body["code"]) == (408, "body_too_slow")
    dribble(connect(), endless(head, b" "))


def test_a_body_for_a_route_that_takes_none_does_not_keep_the_connection(start: Start) -> None:
    connect = start(head_seconds=SECONDS, read_seconds=SECONDS)
    dribble(
        connect(), endless(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nContent-Length: 99999\r\n\r\n", b"x")
    )


@pytest.mark.parametrize(
    "head",
    [
        b"GET / HTTP/1.1\r\nHost: localhost\r\n" + b"X-Flood: y\r\n" * 20_000,
        b"GET /" + b"a" * 200_000 + b" HTTP/1.1\r\n",
        b"GET / HTTP/1.1\r\nHost: localhost\r\nX: " + b"z" * 200_000,
        b"\x16\x03\x01 this is TLS\r\n\r\n",
        b"POST /plan HTTP/1.1\r\nHost: localhost\r\nContent-Length: -5\r\n\r\n",
        b"POST /plan HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: gzip\r\n\r\n",
    ],
    ids=["many headers", "long path", "long header", "no HTTP", "negative length", "unknown coding"],
)
def test_a_head_that_is_none_is_refused_with_a_document(start: Start, head: bytes) -> None:
    connection = start()()
    with contextlib.suppress(OSError):  # refused before all of it was sent
        connection.sendall(head)
    status, body = answer_of(connection)
    assert (status, body["status"]) == (400, 400)
    assert body["code"] == "bad_request"


def test_one_that_keeps_to_the_rules_is_served_again_on_its_connection(start: Start) -> None:
    connect = start(head_seconds=SECONDS)

    def answered() -> bool:
        """Whether three requests on one connection were, whose pauses together are longer than one may be."""
        connection = connect()
        for _ in range(3):
            received = b""
            connection.sendall(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
            while not received.endswith(b"}"):
                data = connection.recv(65536)
                if not data:
                    return False
                received += data
            assert received.startswith(b"HTTP/1.1 200")
            time.sleep(SECONDS / 2)
        return True

    wait_for(answered, 120)  # on a busy machine a pause may become longer than what is allowed
