"""Loops survive whatever their turns raise, tell of it once, and end the process where they cannot go on."""

import logging
import subprocess
import sys
import threading

import pytest
from waiting import wait_for

from app import loops
from app.loops import EXIT_BROKEN, Loop

WAIT_SECONDS = 60.0


class Unforeseen(Exception):
    """Nobody catches this by name."""


def test_a_loop_goes_on_after_any_exception_and_logs_it_in_one_line(
    caplog: pytest.LogCaptureFixture,
) -> None:
    faults: list[Exception] = [Unforeseen("two\nlines"), OSError(28, "full"), ValueError("odd")]
    done = threading.Event()

    def turn() -> None:
        if faults:
            raise faults.pop(0)
        done.set()

    loop = Loop("odd-jobs", turn, every_seconds=0.0, retry_seconds=0.01)
    with caplog.at_level(logging.INFO, logger="app.loops"):
        loop.start()
        assert done.wait(WAIT_SECONDS)
        wait_for(lambda: "loop_resumed" in caplog.text, WAIT_SECONDS)
        loop.stop()
        loop.join()
    failures = [record for record in caplog.records if record.message.startswith("loop_failed")]
    assert [record.message.count("\n") for record in failures] == [0, 0]
    assert failures[0].message == (
        "loop_failed loop=odd-jobs failures=1 retry_in_seconds=0.0 reason=Unforeseen: two lines"
    )
    assert [bool(record.exc_info) for record in failures] == [True, False], "a traceback is shown once"
    assert "loop_resumed loop=odd-jobs failures=3" in caplog.text
    assert loop.state.failures == 3


def test_a_loop_that_fails_for_long_waits_longer_and_is_not_logged_each_time(
    caplog: pytest.LogCaptureFixture,
) -> None:
    def turn() -> None:
        raise Unforeseen("again")

    loop = Loop("odd-jobs", turn, every_seconds=0.1, known=(Unforeseen,))
    with caplog.at_level(logging.INFO, logger="app.loops"):
        waits = [loop.step() for _ in range(100)]
    assert waits[:4] == list(loops.RETRY_SECONDS)
    assert set(waits[4:]) == {loops.RETRY_SECONDS[-1]}
    assert len(caplog.records) == 7  # the 1st, 2nd, 4th ... 64th
    assert not any(record.exc_info for record in caplog.records), "it was known"


def test_a_loop_tells_when_it_last_succeeded(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1000.0
    monkeypatch.setattr(loops.time, "monotonic", lambda: now)
    fail = False

    def turn() -> None:
        if fail:
            raise Unforeseen

    loop = Loop("odd-jobs", turn, every_seconds=1.0, silent_seconds=8.0)
    now = 1005.0
    loop.step()
    assert (loop.state.last_turn_seconds, loop.state.is_silent) == (0.0, False)
    fail, now = True, 1013.5
    loop.step()
    assert (loop.state.last_turn_seconds, loop.state.is_silent) == (8.5, True)
    assert loop.state.as_json() == {
        "name": "odd-jobs",
        "last_turn_seconds": 8.5,
        "silent": True,
        "failures": 1,
    }
    fail = False
    loop.step()
    assert not loop.state.is_silent


@pytest.mark.parametrize(
    ("fault", "options", "said"),
    [
        ("RuntimeError('lost device')", "is_fatal=lambda error: True", "RuntimeError: lost device"),
        ("SystemExit(0)", "", "SystemExit: 0"),
    ],
)
def test_a_loop_that_cannot_go_on_ends_the_process_with_a_critical_line(
    fault: str, options: str, said: str
) -> None:
    code = f"""
import logging, time
from app.loops import Loop
logging.basicConfig(format="%(levelname)s %(message)s")
def turn():
    raise {fault}
Loop("heartbeat", turn, every_seconds=1.0, {options}).start()
time.sleep(600)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == EXIT_BROKEN
    assert f"CRITICAL loop_ended_process loop=heartbeat status=70 reason={said}" in done.stderr
