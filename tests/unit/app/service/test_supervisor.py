"""The parent of all processes, with small real children."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from app.service.gpus.devices import choose_devices
from app.service.processes import worker_spec
from app.service.supervisor import ChildSpec, Supervisor

# A family of three: the grandparent starts a parent and tells the child's pid; the child only waits.
FAMILY = """
import os, subprocess, sys, time
code = "import sys, time; from app.service.parent_death import end_with_parent;"
code += "end_with_parent(int(sys.argv[1])); print('up', flush=True); time.sleep(60)"
process = subprocess.Popen([sys.executable, "-c", code, str(os.getpid())], stdout=subprocess.PIPE, text=True)
process.stdout.readline()
print(process.pid, flush=True)
time.sleep(60)
"""


def test_a_child_dies_with_a_parent_that_is_killed() -> None:
    parent = subprocess.Popen([sys.executable, "-c", FAMILY], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    child = psutil.Process(int(parent.stdout.readline()))
    parent.kill()
    parent.communicate()
    child.wait(120)


def test_a_child_whose_parent_is_already_gone_ends_at_once() -> None:
    gone = subprocess.run(
        [sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, check=True
    )
    code = "from app.service.parent_death import end_with_parent;"
    code += f"end_with_parent({int(gone.stdout)}); raise SystemExit(0)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert result.returncode == 1
    assert "is gone" in result.stderr


class Stand:
    """A supervisor over `framefit` commands that are quick, and what it reported.

    It stops after `stop_deaths` deaths and `stop_children` children, or when no child has run for `stop_idle`
    seconds. After two minutes it stops anyway.
    """

    def __init__(
        self,
        *children: ChildSpec,
        stop_deaths: float = float("inf"),
        stop_children: int = 0,
        stop_idle: float = float("inf"),
    ) -> None:
        self.deaths: list[str] = []
        self.reasons: list[str] = []
        self.children: set[int] = set()
        self.strangers = {process.pid for process in psutil.Process().children()}  # of earlier tests
        self.stop_at = time.monotonic() + 120
        self.stop_deaths, self.stop_children = stop_deaths, stop_children
        self.stop_idle = stop_idle
        self.seen_at = float("inf")
        self.supervisor = Supervisor(
            children,
            drain_seconds=5,
            on_worker_death=self.note_death,
            on_tick=self.tick,
        )

    def note_death(self, worker_id: str, reason: str) -> None:
        self.deaths.append(worker_id)
        self.reasons.append(reason)

    def tick(self) -> None:
        alive = {process.pid for process in psutil.Process().children()} - self.strangers
        self.children |= alive
        if alive:
            self.seen_at = time.monotonic()
        enough = len(self.deaths) >= self.stop_deaths and len(self.children) >= self.stop_children
        if enough or time.monotonic() > min(self.stop_at, self.seen_at + self.stop_idle):
            signal.raise_signal(signal.SIGTERM)
            self.stop_at = self.stop_idle = self.stop_deaths = float("inf")


@pytest.fixture
def kept_signals() -> object:
    kept = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    yield
    for number, handler in kept.items():
        signal.signal(number, handler)


@pytest.mark.usefixtures("kept_signals")
def test_a_process_that_ends_is_started_again_and_its_worker_is_reported(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    # An unknown setting stops every `framefit` process at once: a crash that needs no help.
    monkeypatch.setenv("FRAMEFIT_NO_SUCH_SETTING", "1")
    monkeypatch.setenv("FRAMEFIT_DATA_DIR", str(tmp_path))
    stand = Stand(ChildSpec("worker", ("worker",), worker_id="host/cpu"), stop_deaths=2, stop_children=3)
    stand.supervisor.run()
    assert len(stand.deaths) >= 2
    assert set(stand.deaths) == {"host/cpu"}
    assert set(stand.reasons) == {"worker_crashed", "worker_stopped"}, "the last one is ended in order"
    assert len(stand.children) >= 2
    assert not [pid for pid in stand.children if psutil.pid_exists(pid)]


@pytest.mark.usefixtures("kept_signals")
def test_a_one_shot_process_that_succeeds_is_not_started_again(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("FRAMEFIT_DATA_DIR", str(tmp_path))
    stand = Stand(ChildSpec("profiler", ("profile",), one_shot=True), stop_idle=2)
    stand.supervisor.run()
    assert len(stand.children) == 1


def test_without_a_driver_there_is_one_worker_on_the_cpu() -> None:
    (choice,) = choose_devices("cpu").chosen
    spec = worker_spec(choice, "0a1b2c3d")
    assert spec.arguments[:3] == ("worker", "--device", "cpu")
    assert spec.drains
