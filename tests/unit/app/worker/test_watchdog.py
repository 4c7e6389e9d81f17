"""The thread that stops a job whose lease has ended, whatever the database and the device are doing."""

import os
import sqlite3
import threading
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from app.jobs import Claim, JobSpec
from app.store import JobStore, StoreUnavailable
from app.worker.job import watchdog
from app.worker.job.control import JobControl, JobLost
from app.worker.job.watchdog import Watchdog


@pytest.fixture
def database_url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path / 'jobs.sqlite3'}"


@pytest.fixture
def claim(store: JobStore, make_spec: Callable[..., JobSpec]) -> Claim:
    store.add(make_spec(), b"x")
    claimed = store.claim("w")
    assert claimed is not None
    return claimed


def test_a_job_stops_when_its_lease_ends_although_the_database_does_not_answer(
    store: JobStore, claim: Claim, tmp_path: Path
) -> None:
    control = JobControl()
    dog = Watchdog(lambda: (claim, control), lease_seconds=0.3, progress_timeout_seconds=600)
    answers: list[object] = []

    def beat() -> None:
        try:
            answers.append(
                store.heartbeat("w", device={"name": "cpu"}, job_id=claim.job.id, token=claim.token)
            )
        except StoreUnavailable as refusal:
            answers.append(refusal)

    with closing(sqlite3.connect(tmp_path / "jobs.sqlite3", isolation_level=None)) as intruder:
        intruder.execute("begin immediate")
        beating = threading.Thread(target=beat)
        beating.start()
        dog.start()
        with pytest.raises(JobLost):
            control.pause(60)
        assert answers == [], "the heartbeat still waits"
        intruder.execute("rollback")
    beating.join(120)


def test_a_renewed_lease_counts_from_when_the_renewal_was_sent(
    claim: Claim, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 1000.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    control = JobControl()
    dog = Watchdog(lambda: (claim, control), lease_seconds=30, progress_timeout_seconds=600)
    now = 1025.0
    dog.renewed(sent_at=1010.0)
    now = 1039.0
    dog.look()
    control.check()
    now = 1041.0
    dog.look()
    with pytest.raises(JobLost):
        control.check()


def test_a_call_that_hangs_ends_the_process(claim: Claim, monkeypatch: pytest.MonkeyPatch) -> None:
    now, ends = 1000.0, []
    monkeypatch.setattr(time, "monotonic", lambda: now)
    monkeypatch.setattr(os, "_exit", ends.append)
    monkeypatch.setattr(watchdog.logging, "shutdown", lambda: None)
    current = (claim, JobControl())
    dog = Watchdog(lambda: current, lease_seconds=9999, progress_timeout_seconds=600)
    now = 1599.0
    dog.look()
    assert ends == []
    now = 1601.0
    dog.look()
    assert ends == [watchdog.EXIT_STALLED]


def test_a_worker_that_was_suspended_asks_before_it_drops_its_job(
    claim: Claim, monkeypatch: pytest.MonkeyPatch
) -> None:
    now, ends = 1000.0, []
    monkeypatch.setattr(time, "monotonic", lambda: now)
    monkeypatch.setattr(os, "_exit", ends.append)
    current = (claim, JobControl())
    limits = {"lease_seconds": 30, "progress_timeout_seconds": 600, "grace_seconds": 5}
    dog = Watchdog(lambda: current, **limits)
    before, now = now, now + 3600.0
    dog.note_turn(before)
    dog.look()
    now += 4.0
    dog.note_turn(now - watchdog.LOOK_SECONDS)
    dog.look()
    assert ends == [], "a suspension is no lack of progress"
    current[1].check()
    dog.renewed(sent_at=now)
    now += 20.0
    dog.look()
    current[1].check()


def test_a_worker_that_was_suspended_and_gets_no_answer_drops_its_job(
    claim: Claim, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 1000.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    control = JobControl()
    dog = Watchdog(lambda: (claim, control), lease_seconds=30, progress_timeout_seconds=600, grace_seconds=5)
    before, now = now, now + 40.0
    dog.note_turn(before)
    now += 6.0
    dog.look()
    with pytest.raises(JobLost):
        control.check()
