"""The largest page of jobs costs no query for each job."""

from collections.abc import Callable
from typing import Any

from sqlalchemy import event
from starlette.testclient import TestClient

from app.jobs import Event
from app.store import JobStore, Submission

PAGE = 200


def test_the_largest_page_of_jobs_takes_as_many_queries_as_a_small_one(
    client: TestClient, submit: Callable[..., dict[str, Any]], app_store: JobStore
) -> None:
    service = client.app.state.service  # type: ignore[attr-defined]
    job = app_store.get(submit()["id"])
    more = [Submission(job.spec, b"x", str(number), plan=job.plan) for number in range(PAGE)]
    service.store.submit_all(more)
    # Of jobs that have ended, the service knows how long they take, and tells when each of the page is done.
    ended = {"outcome": "succeeded", "model": job.spec.model, "durations": {"decoding": 2.0}}
    service.waiting_times.run_times.apply([Event(1, job.id, "finished", 0.0, ended)])
    statements: list[str] = []
    event.listen(
        service.store._database.reads,
        "before_cursor_execute",
        lambda _connection, _cursor, statement, *_rest: statements.append(statement),
    )

    def queries(limit: int) -> int:
        statements.clear()
        jobs = client.get("/jobs", params={"limit": limit}).json()["jobs"]
        assert len(jobs) == limit
        assert all(each["eta_seconds"] > 0 for each in jobs)
        return sum("events" not in each for each in statements)  # the feed looks for events meanwhile

    assert queries(PAGE) == queries(2)
