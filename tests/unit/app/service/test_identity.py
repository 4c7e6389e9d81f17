"""Which service this is: the same after a restart, another for a copied data folder."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from app.jobs import JobSpec, JobStatus
from app.service import identity
from app.store import JobStore

ELSEWHERE = "another-boot/pid:[1]/7/1.00"  # a process of another machine: whether it lives is not known here


def enrolled(store: JobStore, folder: Path) -> str:
    return identity.enroll(store, folder, heartbeat_seconds=0.5)


def a_folder(tmp_path: Path, name: str) -> Path:
    (tmp_path / name).mkdir()
    return tmp_path / name


def test_a_restarted_service_keeps_its_id_and_two_folders_have_two(store: JobStore, tmp_path: Path) -> None:
    first, second = a_folder(tmp_path, "first"), a_folder(tmp_path, "second")
    one, other = enrolled(store, first), enrolled(store, second)
    assert one != other
    ended = subprocess.run(
        [sys.executable, "-c", "from app.service.identity import this_process; print(this_process())"],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    ).stdout.strip()
    assert identity.is_alive(ended) is False
    store.enroll(one, host="here", process=ended)
    store.register_worker(f"here/cpu/{one}", {"name": "cpu"})  # heard from a moment ago
    assert enrolled(store, first) == one


def test_a_copied_folder_gets_a_new_id_while_the_original_runs(store: JobStore, tmp_path: Path) -> None:
    original = a_folder(tmp_path, "original")
    one = enrolled(store, original)  # by this process, which lives
    copy = tmp_path / "copy"
    shutil.copytree(original, copy)
    other = subprocess.run(
        [
            sys.executable,
            "-c",
            "import sys; from pathlib import Path; from app.store import JobStore; "
            "from app.service.identity import enroll; "
            "print(enroll(JobStore(sys.argv[1]), Path(sys.argv[2]), heartbeat_seconds=0.5))",
            store._database.writes.url.render_as_string(hide_password=False),
            str(copy),
        ],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    ).stdout.strip()
    assert other != one
    assert (copy / identity.INSTANCE_FILE).read_text().strip() == other
    assert (original / identity.INSTANCE_FILE).read_text().strip() == one


@pytest.mark.parametrize("beats", [True, False])
def test_a_service_that_cannot_be_seen_lives_if_its_workers_are_heard_from(
    store: JobStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, clock: Callable[[], float], beats: bool
) -> None:
    folder = a_folder(tmp_path, "copy")
    one = enrolled(store, folder)
    store.enroll(one, host="there", process=ELSEWHERE)
    store.register_worker(f"there/cpu/{one}", {"name": "cpu"})
    look = identity._wait_for

    def meanwhile(condition: Callable[[], bool], seconds: float) -> bool:
        if beats:
            clock.now += 0.5  # type: ignore[attr-defined]
            store.heartbeat(f"there/cpu/{one}", device={"name": "cpu"})
        return look(condition, seconds)

    monkeypatch.setattr(identity, "_wait_for", meanwhile)
    assert (enrolled(store, folder) != one) is beats


def test_a_service_that_has_been_silent_for_long_is_not_waited_for(
    store: JobStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, clock: Callable[[], float]
) -> None:
    folder = a_folder(tmp_path, "moved")
    one = enrolled(store, folder)
    store.enroll(one, host="there", process=ELSEWHERE)
    store.register_worker(f"there/cpu/{one}", {"name": "cpu"})
    clock.now += 60  # type: ignore[attr-defined]
    monkeypatch.setattr(identity, "_wait_for", lambda *_: pytest.fail("it waits"))
    assert enrolled(store, folder) == one


def test_a_second_service_of_one_host_name_takes_no_job_from_the_first(
    store: JobStore, tmp_path: Path, make_spec: Callable[..., JobSpec]
) -> None:
    first, second = (enrolled(store, a_folder(tmp_path, name)) for name in ("first", "second"))
    job = store.add(make_spec(), b"x")
    mine = f"host/cpu/{first}"
    store.register_worker(mine, {"name": "cpu"})
    assert store.claim(mine) is not None
    assert store.forget_worker(f"host/cpu/{second}", "service_restarted") == []
    assert store.get(job.id).status is JobStatus.RUNNING
    assert store.forget_worker(mine, "service_restarted") == [job.id]


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere the start's time is read from the system")
def test_a_process_is_known_again_after_the_clock_was_set(monkeypatch: pytest.MonkeyPatch) -> None:
    named = identity.this_process()
    # What a step of the clock changes: Linux tells when it was started by the clock as it is now.
    stepped = psutil.boot_time() + 3600.0
    monkeypatch.setattr(psutil._pslinux, "boot_time", lambda: stepped)
    assert identity.is_alive(named) is True


@pytest.mark.parametrize("damage", [b"../../etc", b"\xff\xfe\x00", b""])
def test_a_damaged_file_is_replaced(store: JobStore, tmp_path: Path, damage: bytes) -> None:
    (tmp_path / identity.INSTANCE_FILE).write_bytes(damage)
    assert len(enrolled(store, tmp_path)) == 8
    assert identity.is_alive(identity.this_process())
    assert str(os.getpid()) in identity.this_process()
