"""A queued job that no device can ever hold ends, saying why; one that a device may yet hold waits."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from app.jobs import JobSpec, JobStatus
from app.scheduling.unschedulable import UnschedulableJobs
from app.store import JobStore

MakeSpec = Callable[..., JobSpec]
NEEDED = 100


@pytest.fixture
def database_url(migrated_sqlite: Path, tmp_path: Path) -> str:
    return f"sqlite:///{shutil.copy(migrated_sqlite, tmp_path / 'jobs.sqlite3')}"


class Time:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def stranded(store: JobStore, time: Time, *models: str) -> UnschedulableJobs:
    return UnschedulableJobs(store, models or ("tiny",), store.workers, grace_seconds=60, clock=time)


CASES: list[tuple[list[dict[str, Any]], bool]] = [
    ([{"name": "a", "capacity_bytes": 99}], True),
    ([{"name": "a", "capacity_bytes": 99}, {"name": "b", "capacity_bytes": 98}], True),
    ([{"name": "a", "capacity_bytes": 99}, {"name": "b", "capacity_bytes": 100}], False),
    ([{"name": "a", "capacity_bytes": 99}, {"name": "b"}], False),
    ([{"name": "a", "capacity_bytes": 99, "models": ["other"]}], False),
    ([], False),
]


@pytest.mark.parametrize(("devices", "hopeless"), CASES)
def test_a_job_ends_once_every_live_device_has_said_that_it_is_too_small(
    store: JobStore, make_spec: MakeSpec, devices: list[dict[str, Any]], hopeless: bool
) -> None:
    job = store.add(make_spec(), b"x", needed_bytes=NEEDED)
    small = store.add(make_spec(), b"x", needed_bytes=10)
    unknown = store.add(make_spec(), b"x")
    for device in devices:
        store.register_worker(device["name"], device)
    time = Time()
    watch = stranded(store, time)
    assert watch.fail() == []
    time.now = 59
    assert watch.fail() == []
    time.now = 60
    assert watch.fail() == ([job.id] if hopeless else [])
    if hopeless:
        ended = store.get(job.id)
        assert ended.status is JobStatus.FAILED
        assert ended.error is not None
        assert (ended.error["code"], ended.error["data"]) == (
            "does_not_fit",
            {"needed_bytes": NEEDED, "available_bytes": 99},
        )
    assert {store.get(each.id).status for each in (small, unknown)} == {JobStatus.QUEUED}


def test_a_device_that_comes_back_within_the_grace_time_saves_the_job(
    store: JobStore, make_spec: MakeSpec
) -> None:
    store.add(make_spec(), b"x", needed_bytes=NEEDED)
    store.register_worker("small", {"name": "small", "capacity_bytes": 1})
    time = Time()
    watch = stranded(store, time)
    watch.fail()
    time.now = 59
    store.register_worker("large", {"name": "large", "capacity_bytes": NEEDED})
    watch.fail()
    store.forget_worker("large")
    time.now = 61
    assert watch.fail() == [], "the time runs anew"


def test_a_job_whose_model_is_no_longer_configured_ends(store: JobStore, make_spec: MakeSpec) -> None:
    job = store.add(make_spec(model="gone"), b"x")
    time = Time()
    watch = stranded(store, time)
    watch.fail()
    time.now = 60
    assert watch.fail() == [job.id]
    assert (store.get(job.id).error or {})["code"] == "model_gone"
