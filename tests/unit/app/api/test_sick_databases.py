"""A database that is busy, locked, stopped or restarted: afterwards everything in the API process goes on."""

import http.server
import sqlite3
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

import httpx
import pytest
from scraped import total
from sick_postgres import SickPostgres
from sqlalchemy import NullPool, create_engine, text
from starlette.testclient import TestClient
from waiting import wait_for

from app.api import background, feed
from app.config import Settings
from app.jobs import Claim, Job, JobStatus
from app.service.webhooks import sender
from app.store import JobStore, StoreUnavailable
from app.store.database import answers, postgresql, sqlite

WAIT_SECONDS = 120.0
T = TypeVar("T")
StartClient = Callable[..., TestClient]


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """All that is waited for in tens of seconds takes tenths here."""
    for module in (sqlite, postgresql):
        monkeypatch.setattr(module, "POOL_TIMEOUT_SECONDS", 0.2)
    monkeypatch.setattr(sqlite, "BUSY_TIMEOUT_SECONDS", 0.2)
    monkeypatch.setattr(postgresql, "STATEMENT_TIMEOUT_SECONDS", 1.0)
    monkeypatch.setattr(answers, "LONGER_SECONDS", 0.0)
    monkeypatch.setattr(postgresql, "CONNECT_TIMEOUT_SECONDS", 2)
    monkeypatch.setattr(feed, "SILENT_SECONDS", 0.5)
    monkeypatch.setattr(background, "EVERY_SECONDS", 0.1)
    monkeypatch.setattr(background, "STORAGE_SILENT_SECONDS", 0.5)
    monkeypatch.setattr(sender, "IDLE_SECONDS", 0.1)
    monkeypatch.setattr("app.loops.RETRY_SECONDS", (0.05, 0.2))


class Running:
    """An app with webhooks and retention, and what shows that each part of it works."""

    def __init__(self, client: TestClient, picture: bytes, hook: str, delivered: list[str]) -> None:
        self.client = client
        self.store: JobStore = client.app.state.service.store  # type: ignore[attr-defined]
        self._picture = picture
        self._hook = hook
        self._delivered = delivered
        self._round = 0

    def loops(self) -> dict[str, dict[str, Any]]:
        return {loop["name"]: loop for loop in self.client.get("/healthz").json()["loops"]}

    def status(self) -> int:
        return self.client.get("/healthz").status_code

    def goes_on(self) -> None:
        """Jobs are taken, events reach streams and counters, leases end, results expire, webhooks go out."""
        wait_for(lambda: self.status() == 200, WAIT_SECONDS, lambda: str(self.loops()))
        self._round += 1
        job_id, lost_id = self._submit("finished"), self._submit("lost")
        claims = [self._claim(600), self._claim(0.01)]
        tokens = {claim.job.id: claim.token for claim in claims if claim is not None}
        assert patiently(lambda: self.store.finish(job_id, tokens[job_id], status=JobStatus.SUCCEEDED))
        wait_for(lambda: self._streams_the_end_of(job_id), WAIT_SECONDS)
        wait_for(lambda: self._counted() == self._round, WAIT_SECONDS)
        wait_for(lambda: self._job(lost_id).status is JobStatus.QUEUED, WAIT_SECONDS)
        wait_for(lambda: self._job(job_id).expired, WAIT_SECONDS)
        wait_for(lambda: f"/{self._round}" in self._delivered, WAIT_SECONDS)
        patiently(lambda: self.store.cancel(lost_id))

    def _streams_the_end_of(self, job_id: str) -> bool:
        with self.client.stream("GET", f"/jobs/{job_id}/events") as stream:
            return any("event: finished" in line for line in stream.iter_lines())

    def _job(self, job_id: str) -> Job:
        return patiently(lambda: self.store.get(job_id))

    def _counted(self) -> float:
        return total(self.client.get("/metrics").text, "framefit_jobs_total", outcome="succeeded")

    def _claim(self, lease_seconds: float) -> Claim | None:
        return patiently(lambda: self.store.claim("w", models=["tiny"], lease_seconds=lease_seconds))

    def _submit(self, name: str) -> str:
        form = {"prompt": "p", "model": "tiny", "webhook_url": f"{self._hook}/{self._round}"}
        key = {"Idempotency-Key": f"{name} {self._round}"}

        def answered() -> httpx.Response | None:
            files = {"image": ("p.jpg", self._picture)}
            answer = self.client.post("/generate", data=form, files=files, headers=key)
            return None if answer.status_code == 503 else answer

        answer = wait_for(answered, WAIT_SECONDS)
        assert answer.status_code in (200, 202), answer.text
        return str(answer.json()["id"])


def patiently(call: Callable[[], T]) -> T:
    """What the store answers: a session that ended is noticed by its next user, and waits are short here."""
    while True:
        with suppress(StoreUnavailable):
            return call()


@contextmanager
def receiver(delivered: list[str]) -> Iterator[str]:
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            delivered.append(self.path)
            self.send_response(204)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            """Nothing."""

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


@pytest.fixture
def start(client_of: StartClient, tmp_path: Path, picture: bytes) -> Iterator[Callable[..., Running]]:
    delivered: list[str] = []
    with receiver(delivered) as hook:

        def started(**options: Any) -> Running:
            settings = Settings(
                data_dir=tmp_path,
                poll_seconds=0.02,
                result_ttl_seconds=0.01,
                webhook_secret="for these tests",
                webhook_allow_private=True,
                **options,
            )
            return Running(client_of(settings), picture, hook, delivered)

        yield started


def failures(running: Running) -> dict[str, int]:
    """Those of every loop that asks the database at each of its turns."""
    rare = ("store-writer", "event-retention")
    return {name: loop["failures"] for name, loop in running.loops().items() if name not in rare}


def all_have_failed(running: Running) -> bool:
    return all(failures(running).values())


def test_fifty_busy_connections_stop_nothing_for_good(start: Callable[..., Running]) -> None:
    running = start()
    reads = running.store._database.reads
    with ExitStack() as busy:
        for _ in range(50):
            busy.enter_context(reads.connect())
        wait_for(lambda: all_have_failed(running), WAIT_SECONDS, lambda: str(running.loops()))
        assert running.client.get("/jobs").json()["code"] == "store_unavailable"
        assert running.status() == 503
    running.goes_on()


def test_a_locked_sqlite_file_stops_nothing_for_good_and_health_tells(
    start: Callable[..., Running], tmp_path: Path
) -> None:
    running = start()
    with closing(sqlite3.connect(tmp_path / "framefit.sqlite3", isolation_level=None)) as intruder:
        intruder.execute("begin immediate")
        wait_for(lambda: running.status() == 503, WAIT_SECONDS)
        assert running.loops()["storage-check"]["silent"]
        intruder.execute("rollback")
    running.goes_on()


def test_rows_that_cannot_be_read_stop_a_loop_only_while_they_are_there(
    start: Callable[..., Running],
) -> None:
    running = start()
    write = running.store._database.run
    sql = "insert into events (job_id, kind, at, data) values ('x', 'progress', 0, '{')"
    write(lambda tx: tx.execute(text(sql)))
    wait_for(lambda: running.loops()["event-feed"]["failures"], WAIT_SECONDS)
    wait_for(lambda: running.status() == 503, WAIT_SECONDS)
    write(lambda tx: tx.execute(text("update events set data = '{}' where job_id = 'x'")))
    running.goes_on()


def test_a_postgresql_server_that_hangs_and_one_that_restarts_stop_nothing_for_good(
    start: Callable[..., Running], empty_postgres: str
) -> None:
    running = start(database_url=empty_postgres)
    server = SickPostgres(empty_postgres)
    with server.suspended():
        wait_for(lambda: all_have_failed(running), WAIT_SECONDS, lambda: str(running.loops()))
        assert running.status() == 503
        answer = running.client.get("/jobs")
        assert (answer.status_code, answer.json()["code"]) == (503, "store_unavailable")
    running.goes_on()
    before = failures(running)
    with server.down():
        wait_for(
            lambda: all(count > before[name] for name, count in failures(running).items()),
            WAIT_SECONDS,
            lambda: str(running.loops()),
        )
    running.goes_on()


def test_sessions_of_a_server_that_took_no_writes_are_replaced(
    start: Callable[..., Running], empty_postgres: str
) -> None:
    """As after a failover: a session that is read-only stays so, and new ones are not."""
    running = start(database_url=empty_postgres)
    operator = create_engine(empty_postgres, isolation_level="AUTOCOMMIT", poolclass=NullPool)

    def set_on_server(setting: str) -> None:
        with operator.connect() as connection:
            connection.execute(text("set default_transaction_read_only = off"))
            name = connection.execute(text("select current_database()")).scalar()
            connection.execute(text(f"alter database {name} {setting}"))

    set_on_server("set default_transaction_read_only = on")
    with operator.connect() as connection:
        others = "datname = current_database() and pid <> pg_backend_pid()"
        connection.execute(text(f"select pg_terminate_backend(pid) from pg_stat_activity where {others}"))
    wait_for(lambda: running.status() == 503, WAIT_SECONDS)
    wait_for(lambda: "read-only" in refusal_of_claim(running.store), WAIT_SECONDS)
    set_on_server("reset default_transaction_read_only")
    running.goes_on()


def refusal_of_claim(store: JobStore) -> str:
    try:
        store.claim("w", models=["tiny"], lease_seconds=600)
    except StoreUnavailable as error:
        return str(error)
    return ""
