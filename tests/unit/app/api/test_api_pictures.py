"""Previews and the thumbnail over HTTP: whose they are, and how long."""

from collections.abc import Callable
from typing import Any

import pytest
from starlette.testclient import TestClient

from app.artifacts.local_folder import job_artifacts, write_whole
from app.config import Settings
from app.jobs import JobStatus, Stage
from app.store import JobStore

Submit = Callable[..., dict[str, Any]]
PICTURE = b"\xff\xd8 a picture"


@pytest.fixture
def job_id(submit: Submit, app_store: JobStore, settings: Settings) -> str:
    """A finished job with two previews and a thumbnail."""
    claim = app_store.claim(str(submit()["id"]))
    assert claim is not None
    job_id = claim.job.id
    artifacts = job_artifacts(settings.jobs_dir, job_id).make()
    for path in (artifacts.preview(0), artifacts.preview(1), artifacts.thumbnail, artifacts.frame("first")):
        write_whole(path, PICTURE)
    app_store.progress(job_id, claim.token, stage=Stage.DECODING, progress=0.9)
    app_store.finish(
        job_id,
        claim.token,
        status=JobStatus.SUCCEEDED,
        result={"frames": 25, "thumbnail": True, "first_frame": True, "last_frame": False, "video_path": "x"},
    )
    return job_id


def test_a_jobs_pictures_are_linked_and_served(client: TestClient, job_id: str) -> None:
    links = client.get(f"/jobs/{job_id}").json()["links"]
    assert links["previews"] == [f"/jobs/{job_id}/previews/{number}.jpg" for number in (0, 1)]
    for link in (*links["previews"], links["thumbnail"]):
        answer = client.get(link)
        assert (answer.status_code, answer.content) == (200, PICTURE)
        assert answer.headers["content-type"] == "image/jpeg"
    assert links["first_frame"] == f"/jobs/{job_id}/frames/first.png"
    assert "last_frame" not in links, "the device had no memory for it"
    answer = client.get(links["first_frame"])
    assert (answer.content, answer.headers["content-type"]) == (PICTURE, "image/png")
    assert client.get(f"/jobs/{job_id}/frames/last.png").json()["code"] == "no_picture"
    assert client.get(f"/jobs/{job_id}/frames/middle.png").status_code == 422
    assert "first_frame" not in client.get(f"/jobs/{job_id}").json()["result"]


@pytest.mark.parametrize(
    ("number", "status", "code"), [("7", 404, "no_picture"), ("-1", 422, None), ("x", 422, None)]
)
def test_a_picture_that_is_not_there_is_said_so(
    client: TestClient, job_id: str, number: str, status: int, code: str | None
) -> None:
    answer = client.get(f"/jobs/{job_id}/previews/{number}.jpg")
    assert answer.status_code == status
    assert code in (None, answer.json()["code"])


def test_pictures_end_with_the_result(client: TestClient, job_id: str, app_store: JobStore) -> None:
    app_store.discard(job_id)
    assert "previews" not in client.get(f"/jobs/{job_id}").json()["links"]
    for name in ("thumbnail", "previews/0.jpg", "frames/first.png"):
        answer = client.get(f"/jobs/{job_id}/{name}")
        assert (answer.status_code, answer.json()["code"]) == (410, "result_expired")


def test_a_new_decode_begins_without_the_old_previews(settings: Settings, job_id: str) -> None:
    artifacts = job_artifacts(settings.jobs_dir, job_id).make()
    assert artifacts.previews() == 0
    assert artifacts.thumbnail.exists()
