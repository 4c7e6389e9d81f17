"""One function admits all work: new jobs, remixes, retries and redecodes meet the same limits."""

import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from app.config import Settings
from app.jobs import JobError, JobStatus
from app.service.keys import format_hash
from app.store import JobStore

KEY = "a key of the tests, long enough"


@pytest.fixture
def limited(client_of: Callable[..., TestClient], tmp_path: Path) -> Callable[..., TestClient]:
    """A client whose key has limits; `settings` are those of the service."""

    def start(*, settings: dict[str, Any] | None = None, **limits: int) -> TestClient:
        keys = tmp_path / "keys.toml"
        write_keys(keys, **limits)
        client = client_of(Settings(data_dir=tmp_path / "data", keys_file=keys, **(settings or {})))
        client.headers["Authorization"] = f"Bearer {KEY}"
        return client

    return start


def write_keys(path: Path, **limits: int) -> None:
    lines = [
        "[keys.caller]",
        f'hash = "{format_hash(KEY)}"',
        *(f"{name} = {n}" for name, n in limits.items()),
    ]
    path.write_text("\n".join(lines))


def store_of(client: TestClient) -> JobStore:
    store: JobStore = client.app.state.service.store  # type: ignore[attr-defined]
    return store


def ended(client: TestClient, picture: bytes, count: int) -> list[str]:
    """Ids of jobs that were handed in one by one and failed."""
    ids = []
    for _ in range(count):
        answer = client.post("/generate", data={"prompt": "a boat"}, files={"image": ("a", picture)})
        assert answer.status_code == 202, answer.text
        ids.append(answer.json()["id"])
        claim = store_of(client).claim("w")
        assert claim is not None
        error = JobError("out_of_memory", "no room")
        store_of(client).finish(claim.job.id, claim.token, status=JobStatus.FAILED, error=error)
    return ids


def again(client: TestClient, how: str, job_id: str) -> Any:
    if how == "remix":
        return client.post(f"/v1/videos/{job_id}/remix", json={"prompt": "a ship"})
    return client.post(f"/jobs/{job_id}/{how}")


def code(answer: Any) -> str:
    body = answer.json()
    found: str = (body.get("error") or body)["code"]
    return found


AGAIN = ("retry", "redecode", "remix")


def cancel_queued(client: TestClient) -> None:
    for job in store_of(client).page(status=JobStatus.QUEUED):
        store_of(client).cancel(job.id)


@pytest.mark.parametrize(
    "limit", [{"max_queued": 2}, {"settings": {"max_queued": 2, "client_share": 1.0}}], ids=["key", "queue"]
)
def test_five_jobs_that_are_queued_again_meet_a_limit_of_two(
    limited: Callable[..., TestClient], picture: bytes, limit: dict[str, Any]
) -> None:
    client = limited(**limit)
    jobs = ended(client, picture, 5)
    for how in AGAIN:
        answers = [again(client, how, job_id) for job_id in jobs]
        assert [answer.is_success for answer in answers] == [True, True, False, False, False], how
        assert {(answer.status_code, code(answer)) for answer in answers[2:]} == {(429, "queue_full")}
        assert all(int(answer.headers["retry-after"]) > 0 for answer in answers[2:])
        assert store_of(client).counts()[JobStatus.QUEUED] == 2
        assert client.get(f"/jobs/{jobs[4]}").json()["status"] == "failed", "a refused job is as it was"
        cancel_queued(client)


def test_work_at_once_does_not_pass_a_limit_together(
    limited: Callable[..., TestClient], picture: bytes
) -> None:
    client = limited(max_queued=1)
    jobs = ended(client, picture, 6)
    with ThreadPoolExecutor(6) as pool:
        for how in AGAIN:
            answers = list(pool.map(partial(again, client, how), jobs))
            assert sorted(answer.is_success for answer in answers) == [False] * 5 + [True], how
            cancel_queued(client)


def test_a_key_whose_pixels_were_limited_since_does_not_run_its_larger_jobs_again(
    limited: Callable[..., TestClient], picture: bytes
) -> None:
    client = limited()
    (job_id,) = ended(client, picture, 1)
    client = limited(max_pixels=1000)  # as after a restart with another keys file
    for how in AGAIN:
        refused = again(client, how, job_id)
        assert (refused.status_code, code(refused)) == (422, "over_key_limit"), how
    assert store_of(client).counts()[JobStatus.QUEUED] == 0


def test_no_work_is_taken_while_the_disk_has_less_free_than_the_reserve(
    limited: Callable[..., TestClient], picture: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = limited(settings={"min_free_disk_bytes": 1000})
    (job_id,) = ended(client, picture, 1)
    usage = shutil.disk_usage(client.app.state.service.settings.data_dir)  # type: ignore[attr-defined]
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda _path: usage._replace(free=999))
        answers = [again(client, how, job_id) for how in AGAIN]
        answers.append(client.post("/generate", data={"prompt": "x"}, files={"image": ("a", picture)}))
    for refused in answers:
        assert (refused.status_code, code(refused)) == (507, "disk_full")
        assert int(refused.headers["retry-after"]) > 0
    assert again(client, "retry", job_id).status_code == 202
