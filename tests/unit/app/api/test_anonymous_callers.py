"""What callers without a key learn, and what the log says of callers."""

import logging
import socket
import struct
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from served import served
from sqlalchemy import create_engine, make_url, text
from starlette.testclient import TestClient
from waiting import wait_for

from app.api import create_app
from app.config import Settings
from app.service.keys import format_hash

Clients = Callable[..., TestClient]
KEY = "ff_the-key-of-the-studio"


def messages(caplog: pytest.LogCaptureFixture, event: str) -> list[str]:
    return [line for record in caplog.records if (line := record.getMessage()).startswith(event)]


def test_a_broken_databases_address_is_told_to_nobody(
    client_of: Clients, tmp_path: Path, empty_postgres: str, caplog: pytest.LogCaptureFixture
) -> None:
    url = make_url(empty_postgres)
    client = client_of(Settings(data_dir=tmp_path, database_url=empty_postgres))
    assert client.get("/readyz").status_code == 503
    # Until the counters have caught up, /metrics has another reason for the same status.
    wait_for(lambda: client.get("/metrics").status_code == 200, 60)
    admin = create_engine(url.set(database="postgres"), isolation_level="AUTOCOMMIT")
    with admin.connect() as connection:
        connection.execute(text(f"alter database {url.database} allow_connections false"))
        connection.execute(
            text("select pg_terminate_backend(pid) from pg_stat_activity where datname = :name"),
            {"name": url.database},
        )
    admin.dispose()
    paths = (
        "/metrics",
        "/readyz",
        "/jobs",
        "/jobs/x",
        "/devices",
        "/v1/videos",
        "/jobs/x/events",
        "/jobs/x/video",
    )
    told = [client.get(path) for path in paths]
    assert {answer.status_code for answer in told} == {503}
    secrets = {str(part) for part in (url.host, url.port, url.database, url.query.get("host")) if part}
    for answer in told:
        assert "store_unavailable" in answer.text
        assert not [one for one in (*secrets, "FATAL", "connection to server") if one in answer.text], (
            answer.text
        )
    assert str(url.database) in messages(caplog, "store_unavailable")[0], "the log has the reason"


def guarded(tmp_path: Path, **changes: Any) -> Settings:
    keys = tmp_path / "keys.toml"
    keys.write_text(f'[keys."the studio"]\nhash = "{format_hash(KEY)}"\n')
    return Settings(data_dir=tmp_path, keys_file=keys, **changes)


def test_monitoring_is_open_or_needs_a_key_as_the_operator_sets_it(
    client_of: Clients, tmp_path: Path
) -> None:
    opened = client_of(guarded(tmp_path))
    shut = client_of(guarded(tmp_path, open_monitoring=False))
    for path in ("/metrics", "/readyz"):
        wait_for(lambda: opened.get("/metrics").status_code == 200, 60)
        wait_for(lambda: shut.get("/metrics", headers={"X-API-Key": KEY}).status_code == 200, 60)
        assert opened.get(path).status_code in (200, 503)
        assert (shut.get(path).status_code, shut.get(path).json()["code"]) == (401, "unauthorized")
        assert shut.head(path).status_code == 401
        assert shut.get(path, headers={"Authorization": f"Bearer {KEY}"}).status_code in (200, 503)
    assert shut.get("/healthz").status_code == 200


def test_the_log_names_the_key_of_a_job_and_not_the_secret(
    client_of: Clients, tmp_path: Path, picture: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    client = client_of(guarded(tmp_path))
    client.headers["X-API-Key"] = KEY
    files = {"image": ("photo.jpg", picture)}
    form = {"prompt": "a boat sails by", "model": "tiny"}
    job = client.post("/generate", data=form, files=files).json()["id"]
    (several,) = client.post("/generate/batch", data=form, files=files).json()["jobs"]
    video = client.post("/v1/videos", data=form, files={"input_reference": ("p.jpg", picture)}).json()["id"]
    remix = client.post(f"/v1/videos/{video}/remix", json={"prompt": "another"}).json()["id"]
    accepted = messages(caplog, "job_accepted")
    assert [line.split()[1] for line in accepted] == [
        f"job_id={one}" for one in (job, several["id"], video, remix)
    ]
    assert all("key=the studio" in line for line in accepted)
    assert KEY not in caplog.text


def test_without_keys_the_log_names_none(
    submit: Callable[..., dict[str, object]], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    job = submit(model="tiny")
    assert messages(caplog, "job_accepted") == [f"job_accepted job_id={job['id']} model=tiny key=None"]


def test_an_empty_idempotency_key_is_refused(client: TestClient, picture: bytes) -> None:
    files = {"image": ("photo.jpg", picture)}
    for path in ("/generate", "/generate/batch", "/v1/videos", "/v1/videos/x/remix"):
        for key in ("", " "):
            answer = client.post(path, data={"prompt": "x"}, files=files, headers={"Idempotency-Key": key})
            problem = answer.json()
            problem = problem.get("error", problem)
            assert (answer.status_code, problem["code"]) == (422, "invalid_header_parameter"), path
            assert "idempotency-key" in (problem.get("detail") or problem["message"])
    assert client.get("/jobs").json()["jobs"] == []


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, int]]:
    with served(create_app(Settings(data_dir=tmp_path_factory.mktemp("data")))) as listening:
        yield listening


@pytest.mark.parametrize("path", ["/generate", "/plan", "/session", "/v1/videos"])
@pytest.mark.parametrize("reset", [False, True], ids=["closed", "reset"])
def test_a_client_that_hangs_up_in_mid_upload_is_one_quiet_line(
    address: tuple[str, int], caplog: pytest.LogCaptureFixture, path: str, reset: bool
) -> None:
    caplog.set_level(logging.INFO)
    with closing(socket.create_connection(address, timeout=30)) as connection:
        if reset:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        head = (
            f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 4000\r\nExpect: 100-continue\r\n\r\n"
        )
        connection.sendall(head.encode())
        assert connection.recv(100).startswith(b"HTTP/1.1 100"), "the route reads the body"
        connection.sendall(b"x" * 1000)
    wait_for(lambda: messages(caplog, "client_hung_up"), 60, lambda: caplog.text)
    (line,) = messages(caplog, "client_hung_up")
    assert line == f"client_hung_up method=POST path={path}"
    assert not [record for record in caplog.records if record.levelno > logging.INFO or record.exc_info]
