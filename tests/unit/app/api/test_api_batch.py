"""POST /generate/batch and POST /jobs/{id}/retry: several jobs at once, and once more."""

import base64
from collections.abc import Callable
from typing import Any

import pytest
from starlette.testclient import TestClient

from app.config import Settings
from app.jobs import JobError, JobStatus
from app.store import JobStore


def files(name: str, *pictures: bytes) -> list[tuple[str, tuple[str, bytes]]]:
    return [(name, (f"{number}.jpg", data)) for number, data in enumerate(pictures)]


def data_url(picture: bytes) -> str:
    return f"data:image/jpeg;base64,{base64.b64encode(picture).decode()}"


def test_several_pictures_with_one_prompt_become_jobs_in_their_order(
    client: TestClient, make_picture: Callable[..., bytes], app_store: JobStore
) -> None:
    pictures = [make_picture(size=(64, side)) for side in (48, 56, 72)]
    answer = client.post("/generate/batch", data={"prompt": "a boat"}, files=files("image", *pictures))
    assert answer.status_code == 202, answer.text
    jobs = answer.json()["jobs"]
    assert [job["queue_position"] for job in jobs] == [1, 2, 3]
    assert [app_store.image(job["id"]) for job in jobs] == pictures
    assert [client.get(f"/jobs/{job['id']}").json()["request"]["prompt"] for job in jobs] == ["a boat"] * 3


def test_pictures_and_prompts_of_one_number_are_paired(client: TestClient, picture: bytes) -> None:
    form = {"prompt": ["a", "b"], "seed": ["5", "6"], "priority": "2"}
    jobs = client.post("/generate/batch", data=form, files=files("image", picture)).json()["jobs"]
    requests = [job["request"] for job in jobs]
    assert [(each["prompt"], each["seed"], each["priority"]) for each in requests] == [
        ("a", 5, 2),
        ("b", 6, 2),
    ]


def test_fields_beside_the_list_of_a_json_batch_are_defaults_for_every_job(
    client: TestClient, picture: bytes
) -> None:
    body = {
        "image": data_url(picture),
        "prompt": "shared",
        "jobs": [{"seed": 1}, {"prompt": "own", "seed": 2}],
    }
    jobs = client.post("/generate/batch", json=body).json()["jobs"]
    assert [job["request"]["prompt"] for job in jobs] == ["shared", "own"]


def test_a_batch_with_one_bad_job_queues_none_and_names_each_fault(
    client: TestClient, picture: bytes, app_store: JobStore
) -> None:
    body = {
        "image": data_url(picture),
        "jobs": [{"prompt": "a"}, {"prompt": ""}, {"prompt": "c", "width": 250}],
    }
    answer = client.post("/generate/batch", json=body)
    assert answer.status_code == 422
    assert answer.json()["code"] == "batch_refused"
    assert [(each["index"], each["code"]) for each in answer.json()["errors"]] == [
        (1, "empty_prompt"),
        (2, "size_not_a_multiple"),
    ]
    assert app_store.counts()[JobStatus.QUEUED] == 0


CASES: list[tuple[dict[str, Any], str]] = [
    ({"jobs": []}, "bad_batch_size"),
    ({"jobs": [{"prompt": "x"}] * 33}, "bad_batch_size"),
    ({"prompt": "x"}, "missing_jobs"),
    ({"jobs": ["x"]}, "missing_jobs"),
]


@pytest.mark.parametrize(("body", "code"), CASES)
def test_what_is_no_batch_is_refused(client: TestClient, body: dict[str, Any], code: str) -> None:
    answer = client.post("/generate/batch", json=body)
    assert (answer.status_code, answer.json()["code"]) == (422, code)


def test_fields_that_do_not_pair_are_refused(client: TestClient, picture: bytes) -> None:
    answer = client.post(
        "/generate/batch", data={"prompt": ["a", "b", "c"]}, files=files("image", picture, picture)
    )
    assert (answer.status_code, answer.json()["code"]) == (422, "uneven_fields")


def test_a_batch_that_would_overfill_the_queue_is_refused_whole(
    client_of: Callable[..., TestClient], settings: Settings, picture: bytes
) -> None:
    client = client_of(settings.model_copy(update={"max_queued": 2}))
    body = {"image": data_url(picture), "prompt": "x", "jobs": [{}] * 3}
    answer = client.post("/generate/batch", json=body)
    assert (answer.status_code, answer.json()["code"], answer.headers["Retry-After"]) == (
        429,
        "queue_full",
        "60",
    )
    assert client.get("/jobs").json()["jobs"] == []


def test_a_batch_that_is_sent_again_under_its_key_is_the_same_jobs(
    client: TestClient, picture: bytes
) -> None:
    body = {"image": data_url(picture), "prompt": "x", "jobs": [{"seed": 1}, {"seed": 2}]}
    first = client.post("/generate/batch", json=body, headers={"Idempotency-Key": "k"}).json()["jobs"]
    again = client.post("/generate/batch", json=body, headers={"Idempotency-Key": "k"}).json()["jobs"]
    assert [job["id"] for job in again] == [job["id"] for job in first]
    shorter = {**body, "jobs": [{"seed": 1}]}
    answer = client.post("/generate/batch", json=shorter, headers={"Idempotency-Key": "k"})
    assert (answer.status_code, answer.json()["code"]) == (422, "idempotency_key_reused")


def test_a_failed_job_is_retried_from_its_latents_and_one_that_succeeded_is_not(
    client: TestClient, submit: Callable[..., dict[str, Any]], app_store: JobStore
) -> None:
    job = submit(seed=9)
    claim = app_store.claim("w")
    assert claim is not None
    app_store.checkpoint(claim.job.id, claim.token, "latents", {})
    assert client.post(f"/jobs/{job['id']}/retry").json()["code"] == "wrong_state"
    app_store.finish(claim.job.id, claim.token, status=JobStatus.FAILED, error=JobError("disk_full", "full"))
    link = client.get(f"/jobs/{job['id']}").json()["links"]["retry"]
    again = client.post(link)
    assert again.status_code == 202
    body = again.json()
    assert (body["status"], body["error"], body["request"]["seed"]) == ("queued", None, 9)
    claim = app_store.claim("w")
    assert claim is not None
    assert claim.job.latents_path == "latents"
    app_store.finish(claim.job.id, claim.token, status=JobStatus.SUCCEEDED, result={"frames": 25})
    answer = client.post(link)
    assert (answer.status_code, answer.json()["code"]) == (409, "wrong_state")
    assert "retry" not in client.get(f"/jobs/{job['id']}").json()["links"]


def test_an_expired_job_says_so_wherever_it_is_asked_for(
    client: TestClient, submit: Callable[..., dict[str, Any]], app_store: JobStore
) -> None:
    job_id = submit()["id"]
    claim = app_store.claim("w")
    assert claim is not None
    app_store.finish(claim.job.id, claim.token, status=JobStatus.SUCCEEDED, result={"frames": 25})
    assert client.delete(f"/jobs/{job_id}/video").status_code == 204
    for method, path in (
        ("GET", f"/jobs/{job_id}/video"),
        ("POST", f"/jobs/{job_id}/redecode"),
    ):
        answer = client.request(method, path)
        assert (answer.status_code, answer.json()["code"]) == (410, "result_expired"), path
    answer = client.get(f"/v1/videos/{job_id}/content")
    assert (answer.status_code, answer.json()["error"]["code"]) == (410, "result_expired")
    video = client.get(f"/v1/videos/{job_id}").json()
    assert (video["expired"], video["error"]["code"]) == (True, "result_expired")
    assert video["expires_at"] is not None
    job = client.get(f"/jobs/{job_id}").json()
    assert (job["expired"], set(job["links"])) == (True, {"self", "events", "delete"})
