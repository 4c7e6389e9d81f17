"""Why a worker or the whole service ended: a fault of its own, the out-of-memory killer, or others."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from app.attempts import BLAME, Blame, Stop
from app.service.ends import last_run
from app.service.ends.deaths import OomWatch, reason_of
from app.service.ends.last_run import End, RunRecord
from app.service.ends.oom_kills import OomKills, read_oom_kills
from app.service.parent_death import EXIT_DATABASE_UNAVAILABLE, EXIT_STALLED

ABORT = "import os; os.abort()"
KILLED = "import os, signal; os.kill(os.getpid(), signal.SIGKILL)"
# A test run that was started with nohup passes on that the signal is ignored.
HUNG_UP = """import os, signal
signal.signal(signal.SIGHUP, signal.SIG_DFL)
os.kill(os.getpid(), signal.SIGHUP)"""
RAISES = "raise RuntimeError"


@pytest.mark.parametrize(
    ("code", "oom_killed", "reason", "blame"),
    [
        (ABORT, False, "worker_crashed", Blame.JOB),
        (RAISES, False, "worker_crashed", Blame.JOB),
        (KILLED, False, "worker_killed", Blame.OTHERS),
        (KILLED, True, "out_of_memory_killer", Blame.JOB),
        (HUNG_UP, True, "worker_killed", Blame.OTHERS),
        (ABORT, True, "worker_crashed", Blame.JOB),
        (f"raise SystemExit({EXIT_STALLED})", False, "worker_stalled", Blame.JOB),
        (f"raise SystemExit({EXIT_DATABASE_UNAVAILABLE})", False, "database_unavailable", Blame.OTHERS),
        ("", True, "worker_stopped", Blame.NOBODY),
    ],
)
def test_the_exit_status_of_a_real_process_says_who_ended_it(
    code: str, oom_killed: bool, reason: str, blame: Blame
) -> None:
    status = subprocess.run(
        [sys.executable, "-S", "-c", code], stderr=subprocess.DEVNULL, check=False
    ).returncode
    assert reason_of(status, oom_killed=oom_killed) == reason
    assert BLAME[reason] is blame


V2 = "low 0\nhigh 4\nmax 7\noom 3\noom_kill 2\noom_group_kill 0\n"
V1 = "oom_kill_disable 0\nunder_oom 0\noom_kill 5\n"
VMSTAT = "nr_free_pages 5\noom_kill 11\n"
HYBRID = "9:name=systemd:/\n4:memory:/box/1\n0::/box/2\n"
SYSTEMS = {
    "version 2": ({"proc/self/cgroup": "0::/box/1\n", "sys/fs/cgroup/box/1/memory.events": V2}, 2),
    "version 2, the group alone is mounted": (
        {"proc/self/cgroup": "0::/box/1\n", "sys/fs/cgroup/memory.events": V2},
        2,
    ),
    "version 2, seen from below": ({"proc/self/cgroup": "0::/../x\n", "sys/fs/cgroup/memory.events": V2}, 2),
    "version 1": (
        {
            "proc/self/cgroup": HYBRID,
            "sys/fs/cgroup/memory/box/1/memory.oom_control": V1,
            "proc/vmstat": VMSTAT,
        },
        5,
    ),
    "version 1, the group alone is mounted": (
        {"proc/self/cgroup": HYBRID, "sys/fs/cgroup/memory/memory.oom_control": V1},
        5,
    ),
    "a kernel that does not count by group": (
        {
            "proc/self/cgroup": HYBRID,
            "sys/fs/cgroup/memory/box/1/memory.oom_control": "under_oom 0\n",
            "proc/vmstat": VMSTAT,
        },
        11,
    ),
    "no groups": ({"proc/vmstat": VMSTAT}, 11),
    "nothing": ({}, None),
    "nonsense": ({"proc/self/cgroup": "\x00:::\n\n4", "proc/vmstat": "oom_kill many\n"}, None),
}


def system(root: Path, name: str) -> int | None:
    files, expected = SYSTEMS[name]
    for path, text in files.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(text)
    return expected


@pytest.mark.parametrize("name", SYSTEMS)
def test_the_count_of_kills_is_read_wherever_the_kernel_keeps_it(tmp_path: Path, name: str) -> None:
    expected = system(tmp_path, name)
    found = read_oom_kills(tmp_path)
    assert (found and found.count) == expected


@pytest.mark.skipif(sys.platform != "linux", reason="other systems do not count")
def test_this_kernel_has_a_count_or_none_and_an_unchanged_one_is_no_rise() -> None:
    assert read_oom_kills() == read_oom_kills()
    assert not OomWatch().has_risen()


def test_a_rise_is_told_once_and_another_place_is_none() -> None:
    counts = [OomKills("here", 1), OomKills("here", 2), OomKills("here", 2), OomKills("there", 9), None]
    watch = OomWatch(iter(counts).__next__)
    assert [watch.has_risen() for _ in counts[1:]] == [True, False, False, False]


HERE, LATER, THERE = OomKills("here", 1), OomKills("here", 2), OomKills("there", 1)


@pytest.mark.parametrize(
    ("now", "expected"),
    [
        (HERE, End("service_killed")),
        (LATER, End("service_restarted", Stop("0a1b2c3d", 1))),
        (THERE, End("service_restarted", Stop("0a1b2c3d", 1))),
        (None, End("service_restarted", Stop("0a1b2c3d", 1))),
    ],
)
def test_a_run_that_was_not_ended_in_order_is_told_by_its_successor(
    tmp_path: Path, now: OomKills | None, expected: End
) -> None:
    RunRecord(tmp_path).begin("0a1b2c3d", HERE)
    (tmp_path / last_run.FILE).write_text(
        (tmp_path / last_run.FILE).read_text().replace('"stops": 1', '"stops": 0')
    )
    assert RunRecord(tmp_path).begin("0a1b2c3d", now) == expected


def test_unclean_stops_are_numbered_and_orderly_ones_are_not(tmp_path: Path) -> None:
    first = RunRecord(tmp_path)
    assert first.begin("0a1b2c3d", None) == End("service_restarted", Stop("0a1b2c3d", 1))
    first.end()
    assert RunRecord(tmp_path).begin("0a1b2c3d", None) == End("worker_stopped")
    assert RunRecord(tmp_path).begin("0a1b2c3d", None) == End("service_restarted", Stop("0a1b2c3d", 2))
    assert RunRecord(tmp_path).begin("0a1b2c3d", None) == End("service_restarted", Stop("0a1b2c3d", 3))


def test_kills_of_other_processes_during_a_run_do_not_count_at_its_end(tmp_path: Path) -> None:
    run = RunRecord(tmp_path)
    run.begin("0a1b2c3d", HERE)
    run.note(LATER)
    assert RunRecord(tmp_path).begin("0a1b2c3d", LATER) == End("service_killed")


@pytest.mark.parametrize(
    "damage", [b"", b"[]", b"\xff", b'{"running": 1}', b'{"running":1,"stops":"x","oom_kills":3}']
)
def test_a_damaged_record_is_an_unclean_stop(tmp_path: Path, damage: bytes) -> None:
    (tmp_path / last_run.FILE).write_bytes(damage)
    assert RunRecord(tmp_path).begin("0a1b2c3d", HERE).reason == "service_restarted"


def test_a_record_that_can_be_neither_read_nor_written_stops_nothing(tmp_path: Path) -> None:
    (tmp_path / last_run.FILE).mkdir()
    assert RunRecord(tmp_path).begin("0a1b2c3d", HERE).reason == "service_restarted"


def test_signals_that_a_process_raises_itself_are_no_signals_of_others() -> None:
    own = {number for number in signal.Signals if reason_of(-number, oom_killed=False) == "worker_crashed"}
    assert {signal.SIGABRT, signal.SIGSEGV, signal.SIGBUS} <= own
    assert not own & {signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGHUP}
