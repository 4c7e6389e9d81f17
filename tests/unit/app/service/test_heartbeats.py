"""Which workers hang, over real job tables; and what a container's health check makes of it."""

import json
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest

from app.service import healthcheck
from app.service.data_folder import LOCK_FILE
from app.service.ends.counts import EndCounts
from app.service.exposition.worker_ends import WorkerEnds
from app.service.heartbeats import FAILURES, FILE, HeartbeatWatch, WorkerProcess
from app.store import JobStore, StoreUnavailable

ID, PID = "host/cpu/0a1b2c3d", 4711


class Stand:
    """A watch with the default limits over a store, turned every five seconds of its own clock."""

    def __init__(self, store: JobStore, data_dir: Path, clock: Any) -> None:
        self.store, self.path, self.clock = store, data_dir / FILE, clock
        self.watch = HeartbeatWatch(store, data_dir, heartbeat_seconds=5, silence_seconds=60, clock=clock)

    def beat(self, pid: int = PID) -> None:
        self.store.heartbeat(ID, device={"name": "cpu", "worker_pid": pid})

    def turn(self, seconds: float = 5, **process: Any) -> list[str]:
        self.clock.now += seconds
        return self.watch.look([WorkerProcess(ID, **{"pid": PID, **process})])

    def turns(self, seconds: float, **process: Any) -> list[str]:
        """The workers that hung during so many seconds."""
        return [one for _ in range(int(seconds / 5)) for one in self.turn(**process)]

    @property
    def state(self) -> str:
        return str(json.loads(self.path.read_text())["workers"][ID])


@pytest.fixture
def stand(store: JobStore, tmp_path: Path, clock: Any) -> Stand:
    return Stand(store, tmp_path, clock)


def test_a_worker_that_reports_never_hangs(stand: Stand) -> None:
    for _ in range(100):
        stand.beat()
        assert stand.turn() == []
    assert stand.state == "alive"


def test_a_worker_that_stops_reporting_is_silent_at_first_and_hangs_after_the_limit(stand: Stand) -> None:
    stand.beat()
    stand.turn()
    assert stand.turns(30) == []
    assert stand.state == "silent"
    assert stand.turns(30) == []
    assert stand.turn() == [ID]
    assert stand.turn() == [], "the kill takes its time"
    assert stand.turns(65) == [ID], "it still runs"


def test_a_worker_that_has_not_reported_yet_has_ten_times_as_long(stand: Stand) -> None:
    assert stand.turns(600) == []
    assert stand.state == "starting"
    assert stand.turn() == [ID]


def test_the_last_heartbeat_of_the_process_before_counts_for_nothing(stand: Stand) -> None:
    stand.beat(pid=1)
    assert stand.turns(100) == []
    assert stand.state == "starting"


def test_a_suspended_machine_makes_nobody_silent(stand: Stand) -> None:
    stand.beat()
    stand.turn()
    assert stand.turn(seconds=100_000) == []
    assert stand.turns(30) == []
    stand.beat()
    assert stand.turns(60) == []


def test_while_the_database_takes_no_writes_nobody_is_silent(
    stand: Stand, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_worker_id: str) -> None:
        raise StoreUnavailable("locked")

    stand.beat()
    stand.turn()
    with monkeypatch.context() as patch:
        patch.setattr(stand.store, "touch_worker", refuse)
        for _ in range(100):
            with suppress(StoreUnavailable):
                assert stand.turn() == []
    assert stand.turns(60) == [], "the worker has time to report again"
    assert stand.turns(10) == [ID]


def test_a_limit_of_zero_lets_a_worker_hang(store: JobStore, tmp_path: Path, clock: Any) -> None:
    stand = Stand(store, tmp_path, clock)
    stand.watch = HeartbeatWatch(store, tmp_path, heartbeat_seconds=5, silence_seconds=0, clock=clock)
    stand.beat()
    assert stand.turns(1000) == []
    assert stand.state == "silent"


def test_a_worker_that_ends_again_and_again_before_it_reports_is_failing(stand: Stand) -> None:
    stand.turn(pid=None, failures=FAILURES - 1)
    assert stand.state == "starting"
    stand.turn(failures=FAILURES)
    assert stand.state == "failing"
    stand.beat()
    stand.turn(failures=FAILURES)
    assert stand.state == "alive"


class Api(BaseHTTPRequestHandler):
    status = 200

    def do_GET(self) -> None:
        self.send_response(self.status)
        self.end_headers()
        self.wfile.write(b"{}")

    def log_message(self, *_arguments: object) -> None:
        pass


@pytest.fixture
def api() -> Iterator[type[Api]]:
    handler = type("Answering", (Api,), {})
    server = HTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    handler.port = server.server_port  # type: ignore[attr-defined]
    yield handler
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.mark.parametrize(
    ("states", "age", "fault"),
    [
        (["alive"], 0, None),
        (["starting"], 0, None),
        (["silent", "alive"], 0, None),
        (["silent", "starting"], 0, None),
        (["silent", "silent"], 0, "no worker works: w0 is silent, w1 is silent"),
        (["failing"], 0, "no worker works: w0 is failing"),
        ([], 0, None),
        (["alive"], 100, "the supervisor does not run"),
        (None, 0, "the supervisor has not said"),
    ],
)
def test_a_container_is_healthy_while_a_worker_works_or_starts(
    api: Any, tmp_path: Path, states: list[str] | None, age: float, fault: str | None
) -> None:
    (tmp_path / LOCK_FILE).touch()
    if states is not None:
        workers = {f"w{index}": state for index, state in enumerate(states)}
        (tmp_path / FILE).write_text(json.dumps({"at": time.monotonic() - age, "workers": workers}))
    found = healthcheck.fault(api.port, tmp_path)
    assert found is None if fault is None else found is not None and found.startswith(fault)


def test_a_container_is_unhealthy_while_its_api_process_fails_or_does_not_answer(
    api: Any, tmp_path: Path
) -> None:
    (tmp_path / FILE).write_text(json.dumps({"at": time.monotonic(), "workers": {"w": "alive"}}))
    api.status = 503
    assert healthcheck.fault(api.port, tmp_path) == "/healthz answers 503: {}"
    assert "does not answer" in (healthcheck.fault(1, tmp_path) or "")


def test_an_api_process_without_a_supervisor_is_healthy_alone(api: Any, tmp_path: Path) -> None:
    assert healthcheck.fault(api.port, tmp_path) is None


def test_the_health_check_and_the_supervisor_mean_the_same_files() -> None:
    assert (healthcheck.FILE, healthcheck.LOCK_FILE) == (FILE, LOCK_FILE)


def test_the_ends_of_workers_are_counted_over_restarts_of_the_service(tmp_path: Path) -> None:
    def samples() -> dict[tuple[str, str], float]:
        (family,) = WorkerEnds(tmp_path).collect()
        return {(s.labels["gpu"], s.labels["reason"]): s.value for s in family.samples}

    assert samples() == {}
    counts = EndCounts(tmp_path, ["cpu"])
    assert samples()["cpu", "worker_hung"] == 0
    counts.note("cpu", "worker_hung")
    counts.note("cpu", "worker_stopped")
    EndCounts(tmp_path, ["cpu", "GPU-1"]).note("cpu", "worker_hung")
    assert samples()["cpu", "worker_hung"] == 2
    assert ("cpu", "worker_stopped") not in samples()
    (tmp_path / "worker_ends.json").write_text("{")
    assert samples() == {}
