"""What holds for SQLite alone: durability settings, locks held by others, a disk that is full."""

import sqlite3
from collections.abc import Callable
from pathlib import Path

import pytest
from sqlalchemy import text

from app.jobs import JobSpec, JobStatus
from app.store import JobStore, StoreUnavailable
from app.store.database import sqlite


@pytest.fixture
def database_url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path / 'jobs.sqlite3'}"


def test_commits_reach_the_disk_before_they_are_reported(store: JobStore) -> None:
    for engine in (store._database.writes, store._database.reads):
        with engine.connect() as connection:
            assert connection.exec_driver_sql("pragma journal_mode").scalar() == "wal"
            assert connection.exec_driver_sql("pragma synchronous").scalar() == 2


def test_a_database_locked_by_someone_else_is_a_refusal_and_nothing_is_lost(
    tmp_path: Path, make_spec: Callable[..., JobSpec], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sqlite, "BUSY_TIMEOUT_SECONDS", 0.1)
    store = JobStore(f"sqlite:///{tmp_path / 'jobs.sqlite3'}")
    store.migrate()
    intruder = sqlite3.connect(tmp_path / "jobs.sqlite3", isolation_level=None)
    intruder.execute("begin immediate")
    try:
        with pytest.raises(StoreUnavailable):
            store.add(make_spec(), b"x")
        assert store.counts()[JobStatus.QUEUED] == 0, "reading goes on"
    finally:
        intruder.execute("rollback")
        intruder.close()
    store.add(make_spec(), b"x")
    assert store.counts()[JobStatus.QUEUED] == 1
    store.close()


def test_a_full_disk_is_a_refusal_and_the_store_recovers(
    store: JobStore, make_spec: Callable[..., JobSpec]
) -> None:
    store.add(make_spec(), b"x")

    def limit(pages: int) -> None:
        # The writer's own connection: a page limit is SQLite's picture of a full disk.
        store._database.run(lambda tx: tx.execute(text(f"pragma max_page_count = {pages}")))

    limit(1)
    plan = {"detail": "x" * 1_000_000}
    with pytest.raises(StoreUnavailable, match="full"):
        store.add(make_spec(), b"x", plan=plan)
    limit(2**30)
    store.add(make_spec(), b"x", plan=plan)
    assert store.counts()[JobStatus.QUEUED] == 2
