"""A database of the first released schema is brought up to date with nothing lost."""

import sqlite3
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
from sqlalchemy import create_engine, text

from app.jobs import JobSpec, JobStatus
from app.store import JobStore, Rules, Submission, database

SCHEMAS = Path(__file__).with_name("schemas")
IMAGE = b"\xff\xd8 a picture"
NOW = 1_790_002_000.0


@pytest.fixture(params=["sqlite", "postgresql"])
def first_schema(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """URL of a database as version 0001 left it: jobs in every status, a webhook due, a device paused."""
    dump = (SCHEMAS / f"0001.{request.param}.sql").read_text()
    if request.param == "sqlite":
        path = tmp_path / "old.sqlite3"
        with sqlite3.connect(path) as connection:
            connection.executescript(dump)
        connection.close()
        return f"sqlite:///{path}"
    url: str = request.getfixturevalue("empty_postgres")
    engine = create_engine(url)
    with engine.begin() as connection:
        connection.exec_driver_sql(dump)
    engine.dispose()
    return url


def test_a_database_of_the_first_schema_is_upgraded_with_every_job_and_usable(
    first_schema: str, make_spec: Callable[..., JobSpec]
) -> None:
    store = JobStore(first_schema, clock=lambda: NOW, rules=Rules(result_ttl_seconds=1000.0))
    store.migrate()
    with store._database.reads.connect() as connection:
        revision = connection.execute(text("select version_num from alembic_version")).scalar()
    assert revision == database.HEAD_REVISION
    jobs = {job.spec.prompt: job for job in store.page()}
    assert {name: str(job.status) for name, job in jobs.items()} == {
        "swept": "succeeded",
        "succeeded": "succeeded",
        "failed": "failed",
        "canceled": "canceled",
        "running": "running",
        "queued": "queued",
        "queued first": "queued",
    }
    found = Counter(job.status for job in jobs.values())
    assert store.counts() == {status: found[status] for status in JobStatus}
    assert jobs["succeeded"].decode == {"strategy": "per_frame"}
    assert (jobs["failed"].error or {})["data"] == {"needed_bytes": 5}
    assert (jobs["swept"].expired, jobs["swept"].expires_at is not None) == (True, True)
    assert store.image(jobs["queued"].id) == IMAGE
    running = jobs["running"]
    assert store.heartbeat("host/cpu", device={"name": "cpu"}, job_id=running.id, token=running.token).paused
    delivery = store.take_delivery()
    assert delivery is not None
    assert delivery.url == "https://example.org/hook"
    spec = make_spec(prompt="queued")
    again = Submission(spec, IMAGE, spec.fingerprint(IMAGE), idempotency_key="a-key")
    assert store.submit(again) == (jobs["queued"], False)
    last = store.last_event()
    assert store.finish(running.id, running.token, status=JobStatus.SUCCEEDED, result={"frames": 25})
    assert [event.seq for event in store.events_after(last)] == [last + 1], "numbers go on"
    claim = store.claim("another")
    assert claim is not None
    assert claim.job.id == jobs["queued first"].id
    removed: list[str] = []
    store.expire_results(removed.append)
    assert removed == [], "what was swept before is not swept again"
    store.close()
