"""GET /jobs finds the jobs of a long history: by words, status, model and time, page by page."""

from collections.abc import Callable
from typing import Any

import pytest
from starlette.testclient import TestClient

from app.jobs import JobStatus
from app.store import JobStore, queries

Post = Callable[..., dict[str, Any]]


def found(client: TestClient, **parameters: Any) -> list[str]:
    answer = client.get("/jobs", params=parameters)
    assert answer.status_code == 200, answer.text
    return [job["id"] for job in answer.json()["jobs"]]


def test_jobs_are_found_by_words_status_and_time(
    client: TestClient, submit: Post, app_store: JobStore
) -> None:
    boat, pan = (submit(prompt=prompt) for prompt in ("A boat sails by", "a slow pan"))
    claim = app_store.claim("w")
    assert claim is not None
    app_store.finish(claim.job.id, claim.token, status=JobStatus.FAILED)
    assert found(client, q="BOAT  by") == [boat["id"]]
    assert found(client, q=pan["id"]) == [pan["id"]]
    assert found(client, q=boat["model"].upper()) == [pan["id"], boat["id"]]
    assert found(client, q="boat", status="queued") == []
    assert found(client, status="ended") == [boat["id"]]
    assert found(client, q="  ") == [pan["id"], boat["id"]]
    assert found(client, before="2020-01-01T00:00:00Z") == []
    assert found(client, before="2100-01-01T00:00:00+02:00", since=boat["created_at"]) == [
        pan["id"],
        boat["id"],
    ]
    for wrong in ({"q": "x" * 201}, {"q": "a\0b"}, {"before": "yesterday"}, {"status": "done"}):
        assert client.get("/jobs", params=wrong).json()["code"] == "invalid_query_parameter"


def test_a_search_is_followed_through_pages_that_found_nothing(
    client: TestClient, submit: Post, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(queries, "LOOKED_AT", 2)
    wanted = submit(prompt="wanted")["id"]
    for _ in range(4):
        submit(prompt="other")
    seen, cursor, pages = [], None, 0
    while pages == 0 or cursor:
        answer = client.get("/jobs", params={"q": "wanted", **({"cursor": cursor} if cursor else {})}).json()
        seen += [job["id"] for job in answer["jobs"]]
        cursor, pages = answer["next_cursor"], pages + 1
    assert (seen, pages) == ([wanted], 3)
