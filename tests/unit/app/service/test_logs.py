"""One line an event: for people or for machines, with its ids, from the level that is asked for."""

import json
import logging
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from app.service import logs


@pytest.fixture(autouse=True)
def _as_it_was() -> Iterator[None]:
    root, levels = logging.getLogger(), {name: logging.getLogger(name).level for name in logs.OWN_LOGGERS}
    handlers, level = list(root.handlers), root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
    for name, was in levels.items():
        logging.getLogger(name).setLevel(was)


log = logging.getLogger("app.somewhere")


def lines(capsys: pytest.CaptureFixture[str]) -> list[str]:
    return capsys.readouterr().err.splitlines()


def test_an_event_becomes_json_with_typed_fields_and_ids(capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure("info", form="json", process="worker")
    with logs.bind_ids(job_id="j", worker_id="w"):
        log.info("process_ended name=%s status=%d seconds=%.1f by=signal", 'api "1"', 3, 0.25)
    (line,) = map(json.loads, lines(capsys))
    assert line.pop("at").endswith("+00:00")
    assert line == {
        "level": "info",
        "logger": "app.somewhere",
        "process": "worker",
        "job_id": "j",
        "worker_id": "w",
        "event": "process_ended",
        "name": 'api "1"',
        "status": 3,
        "seconds": 0.25,
        "by": "signal",
    }


@pytest.mark.parametrize(
    ("template", "arguments", "told"),
    [
        ("a sentence of a library: %s", ("x",), "a sentence of a library: x"),
        ("100%% of name=%s", ("x",), "100% of name=x"),
        ("a name=%s\nand a line", ("x",), "a name=x\nand a line"),
    ],
)
def test_what_is_no_event_becomes_a_message_on_one_line(
    capsys: pytest.CaptureFixture[str], template: str, arguments: tuple[str, ...], told: str
) -> None:
    logs.configure("info", form="json")
    log.warning(template, *arguments)
    (line,) = map(json.loads, lines(capsys))
    assert line["message"] == told


def test_a_traceback_stays_on_the_line_of_its_event(capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure("info", form="json")
    try:
        raise ValueError("broken")
    except ValueError:
        log.critical("heartbeat_broke worker_id=%s", "w", exc_info=True)
    (line,) = map(json.loads, lines(capsys))
    assert (line["event"], "ValueError: broken" in line["traceback"]) == ("heartbeat_broke", True)


def test_text_ends_with_the_ids_that_the_event_does_not_tell(capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure("info")
    with logs.bind_ids(job_id="j", request_id="r"):
        log.info("job_ended job_id=%s", "j")
    (line,) = lines(capsys)
    assert line.endswith("INFO app.somewhere job_ended job_id=j request_id=r")


def test_ids_are_those_of_the_thread_that_logs(capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure("info", form="json")
    with logs.bind_ids(job_id="j"):
        other = threading.Thread(target=log.info, args=("elsewhere",))
        other.start()
        other.join()
    (line,) = map(json.loads, lines(capsys))
    assert "job_id" not in line


def test_the_level_follows_the_data_folder_and_goes_back(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    logs.configure("warning")
    follower = logs.LevelFollower(tmp_path, "warning")
    for asked, level in ((None, "WARNING"), ("debug", "DEBUG"), ("debug", "DEBUG"), (None, "WARNING")):
        logs.write_level(tmp_path, asked)
        follower.poll()
        assert logging.getLevelName(log.getEffectiveLevel()) == level
    assert [line.rsplit(" ", 1)[1] for line in lines(capsys)] == ["to=debug", "to=warning"]


def test_a_level_that_is_none_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / logs.LEVEL_FILE).write_text("loud")
    assert logs.read_level(tmp_path) is None


def test_every_answer_has_a_request_id_and_a_harmless_one_is_kept(client: TestClient) -> None:
    own = [
        client.get(path).headers["X-Request-Id"] for path in ("/healthz", "/jobs/none", "/static/style.css")
    ]
    assert len(set(own)) == 3
    assert all(len(one) == 32 for one in own)
    assert client.get("/healthz", headers={"X-Request-Id": "a-1:b"}).headers["X-Request-Id"] == "a-1:b"
    for harmful in ("a b", "x" * 101, "r\tlevel=error"):
        kept = client.get("/healthz", headers={"X-Request-Id": harmful}).headers["X-Request-Id"]
        assert kept != harmful


def test_the_level_is_asked_and_set_over_http(client: TestClient) -> None:
    assert client.get("/log-level").json() == {"level": "info"}
    assert client.post("/log-level?level=debug").json() == {"level": "debug"}
    assert client.get("/log-level").json() == {"level": "debug"}
    assert client.post("/log-level?level=loud").status_code == 422
    assert client.post("/log-level").json() == {"level": "info"}
