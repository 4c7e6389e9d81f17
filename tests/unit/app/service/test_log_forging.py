"""What clients and libraries say can neither look like another line of the log nor steer a terminal."""

import json
import logging
import re
from collections.abc import Iterator
from urllib.parse import quote

import psycopg
import pytest
from starlette.testclient import TestClient

from app.service import logs

FORGED = "2026-01-01 00:00:00,000 ERROR app.service key_stolen key=root"
HOSTILE = [
    "\n",
    "\r\n",
    "\r",
    "\x0b",
    "\x0c",
    "\x1c",
    "\x1b[2K\x1b[1A",
    "\x7f",
    "\x85",
    "\x9b2J",
    "\u2028",
    "\u2029",
]
HOSTILE += ["\u202e", "\u2066", "\x00", "\b" * 40]
log = logging.getLogger("app.somewhere")


@pytest.fixture(autouse=True)
def _as_it_was() -> Iterator[None]:
    root, levels = logging.getLogger(), {name: logging.getLogger(name).level for name in logs.OWN_LOGGERS}
    handlers, level = list(root.handlers), root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
    for name, was in levels.items():
        logging.getLogger(name).setLevel(was)


def written(capsys: pytest.CaptureFixture[str]) -> str:
    text = capsys.readouterr().err
    assert text.endswith("\n")
    return text[:-1]


@pytest.mark.parametrize("form", ["text", "json"])
@pytest.mark.parametrize("mark", HOSTILE, ids=ascii)
def test_a_value_stays_on_its_line(capsys: pytest.CaptureFixture[str], form: str, mark: str) -> None:
    logs.configure("info", form=form)  # type: ignore[arg-type]
    with logs.bind_ids(request_id=f"a{mark}{FORGED}"):
        log.info("request_done path=%s", f"/x{mark}{FORGED}")
        log.warning("a sentence with %s in it", f"x{mark}{FORGED}")
    lines = written(capsys).splitlines()
    assert len(lines) == 2
    assert all(line.isprintable() for line in lines)
    assert all(FORGED in line for line in lines), "nothing is lost"


def test_the_path_of_a_request_forges_no_line(client: TestClient, capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure("debug")
    for mark in ("\n", "\x1b[2J", "\u2028"):
        assert client.get(f"/jobs/{quote(mark + FORGED)}").status_code == 404
    lines = written(capsys).splitlines()
    assert not [line for line in lines if line.startswith(FORGED[:10])]
    assert len([line for line in lines if "request_done" in line and r"key_stolen" in line]) == 3


def test_a_value_forges_no_field_of_its_event(client: TestClient, capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure("debug")
    path = "/jobs/x request_id=forged status=200"
    assert client.get(quote(path), headers={"X-Request-Id": "own"}).status_code == 404
    (line,) = (line for line in written(capsys).splitlines() if " request_done " in line)
    assert f'path="{path}" status=404 ' in line
    assert line.endswith(" request_id=own")


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        ("plain", "plain"),
        ("/jobs/a:b,c", "/jobs/a:b,c"),
        ("a b", '"a b"'),
        ("a=b", '"a=b"'),
        ('a"b', '"a\\"b"'),
        ("a b\\", '"a b\\\\"'),
        ("", '""'),
        (3, "3"),
        (None, "None"),
    ],
)
def test_a_value_that_looks_like_fields_is_quoted(
    capsys: pytest.CaptureFixture[str], value: object, shown: str
) -> None:
    logs.configure("info")
    with logs.bind_ids(job_id=value, request_id="own"):
        log.info("job_named name=%s reason=%s", value, "no disk left")
    event = f'job_named name={shown} reason="no disk left"'
    assert written(capsys).endswith(f" {event} job_id={shown} request_id=own")


def test_a_value_of_several_parts_is_shown_whole(capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure("info")
    with logs.bind_ids(request_id="own"):
        log.info("pictures_cut size=%dx%d model=%s", 64, 48, "tiny")
    assert written(capsys).endswith(" pictures_cut size=64x48 model=tiny request_id=own")


def test_a_librarys_error_of_several_lines_stays_on_its_line(capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure("info")
    with pytest.raises(psycopg.OperationalError) as refusal:
        psycopg.connect("host=localhost,127.0.0.1 port=1 connect_timeout=5")
    assert "\n" in str(refusal.value)
    log.warning("maintenance_postponed reason=%s", refusal.value)
    assert len(written(capsys).splitlines()) == 1


def test_the_lines_of_a_traceback_are_no_events(capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure("info")
    try:
        raise ValueError(f"broken\n{FORGED}\x1b[2J")
    except ValueError:
        log.exception("worker_broke worker_id=%s", "w", stack_info=True)
    text = written(capsys)
    assert "\x1b" not in text
    first, *rest = text.split("\n")
    assert re.match(r"\d{4}-\d\d-\d\d .* ERROR app.somewhere worker_broke", first)
    assert len(rest) > 3
    assert all(line.startswith("    ") for line in rest)
    assert f"    {FORGED}\\x1b[2J" in rest


def test_json_keeps_values_as_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure("info", form="json")
    log.info("request_done path=%s", "/a\n\x7f\u2028b")
    line = written(capsys)
    assert line.isascii()
    assert json.loads(line)["path"] == "/a\n\x7f\u2028b"
