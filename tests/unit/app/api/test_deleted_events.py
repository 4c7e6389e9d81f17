"""Streams of deleted events: a stream says what is missing, and none waits for ever."""

import json
from collections.abc import Callable
from http.client import HTTPConnection
from typing import Any

import pytest
from served import served
from sqlalchemy import text
from starlette.testclient import TestClient
from waiting import wait_for

from app.config import Settings
from app.jobs import JobSpec, JobStatus
from app.service.exposition import exporter
from app.store import JobStore


@pytest.fixture
def settings(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> Settings:
    for name in ("SAVE_SECONDS", "RETIRE_SECONDS"):
        monkeypatch.setattr(exporter, name, 0.0)
    return settings.model_copy(update={"event_ttl_seconds": 1000.0})


def messages(text: str) -> list[dict[str, Any]]:
    found = []
    for block in text.split("\n\n"):
        fields = dict(line.partition(": ")[::2] for line in block.splitlines() if not line.startswith(":"))
        if "data" in fields:
            found.append({**fields, "data": json.loads(fields["data"])})
    return found


def run(store: JobStore, spec: JobSpec) -> str:
    job = store.add(spec, b"image")
    claim = store.claim("w")
    assert claim is not None
    store.finish(claim.job.id, claim.token, status=JobStatus.SUCCEEDED)
    return str(job.id)


@pytest.fixture
def retired(client: TestClient, app_store: JobStore, make_spec: Callable[..., JobSpec]) -> tuple[str, int]:
    """A job whose events were deleted by the service, and the number of the last of them."""
    job_id = run(app_store, make_spec())
    last = app_store.last_event()
    for statement in ("update events set at = at - 2000", "update jobs set finished_at = finished_at - 2000"):
        app_store._database.run(lambda tx, statement=statement: tx.execute(text(statement)).rowcount)
    service = client.app.state.service  # type: ignore[attr-defined]

    def all_deleted() -> bool:
        service.exporter.retire_events()
        return app_store.last_retired_event() == last

    wait_for(all_deleted, 120)
    return job_id, last


def test_the_stream_of_a_job_whose_events_were_deleted_says_so_and_ends(
    client: TestClient, retired: tuple[str, int]
) -> None:
    job_id, last = retired
    url = f"/jobs/{job_id}/events"
    for seen in ({}, {"Last-Event-ID": "1"}):
        (told,) = messages(client.get(url, headers=seen).text)
        assert (told["event"], told["id"]) == ("gap", str(last))
        assert (told["data"]["job_id"], told["data"]["last_deleted"]) == (job_id, last)
        assert "FRAMEFIT_EVENT_TTL_SECONDS" in told["data"]["detail"]
    assert client.get(url, headers={"Last-Event-ID": str(last)}).status_code == 204
    assert client.get(f"/jobs/{job_id}").json()["status"] == "succeeded", "the job itself stays"


def test_a_job_that_came_after_them_is_followed_without_a_gap(
    client: TestClient, app_store: JobStore, retired: tuple[str, int], make_spec: Callable[..., JobSpec]
) -> None:
    job_id = run(app_store, make_spec())
    told = messages(client.get(f"/jobs/{job_id}/events").text)
    assert [one["event"] for one in told] == ["accepted", "claimed", "finished"]
    assert int(told[0]["id"]) > retired[1]


def test_a_follower_of_all_jobs_is_told_only_if_it_asks_for_what_was_deleted(
    app_store: JobStore, retired: tuple[str, int], make_spec: Callable[..., JobSpec], served_client: Any
) -> None:
    _, last = retired
    run(app_store, make_spec())
    told = served_client("/events", {"Last-Event-ID": "1"}, 4)
    assert [one["event"] for one in told] == ["gap", "accepted", "claimed", "finished"]
    assert (told[0]["data"]["job_id"], told[0]["id"]) == (None, str(last))
    told = served_client("/events", {"Last-Event-ID": str(last)}, 3)
    assert [one["event"] for one in told] == ["accepted", "claimed", "finished"]


@pytest.fixture
def served_client(client: TestClient) -> Callable[[str, dict[str, str], int], list[dict[str, Any]]]:
    """Reads the first messages of a stream that does not end, over a real socket."""

    def read(path: str, headers: dict[str, str], number: int) -> list[dict[str, Any]]:
        with served(client.app, lifespan="off") as address:  # the client runs it already
            connection = HTTPConnection(*address, timeout=60)
            connection.request("GET", path, headers=headers)
            answer = connection.getresponse()
            found = ""
            while len(messages(found)) < number:
                found += answer.readline().decode()
            connection.close()
        return messages(found)

    return read
