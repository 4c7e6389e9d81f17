"""Seeds: all 64 bits are taken everywhere, -1 draws one, and no reader of JSON need round it."""

import base64
import json
from collections.abc import Callable
from typing import Any

import torch
from starlette.testclient import TestClient

from app.jobs import JobSpec
from app.store import JobStore, Submission

Post = Callable[..., dict[str, Any]]
LARGEST = 2**64 - 1
LARGE = [2**53 + 1, 2**63 - 1, 2**63, LARGEST]


def data_url(picture: bytes) -> str:
    return f"data:image/jpeg;base64,{base64.b64encode(picture).decode()}"


def test_a_seed_of_64_bits_is_taken_kept_and_told_as_text(
    client: TestClient, picture: bytes, app_store: JobStore, submit: Post
) -> None:
    for seed in (0, *LARGE):
        body = {"prompt": "x", "image": data_url(picture), "seed": seed}
        video = {"prompt": "x", "seed": seed, "input_reference": {"image_url": data_url(picture)}}
        asked = [
            submit(seed=str(seed)),
            client.post("/generate", json=body).json(),
            client.post("/generate", json={**body, "seed": str(seed)}).json(),
            client.post("/generate/batch", json={"jobs": [body]}).json()["jobs"][0],
            client.get(f"/jobs/{client.post('/v1/videos', json=video).json()['id']}").json(),
        ]
        for job in asked:
            assert (job["seed"], job["request"]["seed"]) == (str(seed), seed)
            assert app_store.get(job["id"]).spec.seed == seed
        assert torch.Generator().manual_seed(seed).initial_seed() == seed


def test_minus_one_draws_a_seed_that_the_job_tells(
    client: TestClient, picture: bytes, app_store: JobStore
) -> None:
    body = {"prompt": "x", "image": data_url(picture)}
    asked = [{**body, "seed": value} for value in ("-1", -1, -1.0, " -1 ", "", None)]
    drawn = {int(client.post("/generate", json=each).json()["seed"]) for each in [body, *asked]}
    assert len(drawn) == 7
    assert min(drawn) >= 0
    assert {job.spec.seed for job in app_store.page()} == drawn


def test_a_repeated_request_for_a_random_seed_is_the_same_request(client: TestClient, picture: bytes) -> None:
    body = {"prompt": "x", "image": data_url(picture), "seed": -1}
    first, again = (
        client.post("/generate", json=body, headers={"Idempotency-Key": "k"}).json() for _ in range(2)
    )
    assert (first["id"], first["seed"]) == (again["id"], again["seed"])


def test_any_other_seed_is_refused(client: TestClient, picture: bytes) -> None:
    for seed in (-2, LARGEST + 1, 2**70, 1.5, "one", "1e3", [1]):
        body = {"prompt": "x", "image": data_url(picture), "seed": seed}
        answer = client.post("/generate", json=body)
        assert (answer.status_code, answer.json()["code"]) == (422, "invalid_seed"), seed


def test_the_document_of_the_api_names_the_bounds(client: TestClient) -> None:
    routes = client.get("/openapi.json").json()["paths"]
    for path in ("/generate", "/plan", "/v1/videos"):
        for content in routes[path]["post"]["requestBody"]["content"].values():
            seed = content["schema"]["properties"]["seed"]
            assert (seed["minimum"], seed["exclusiveMaximum"]) == (-1, 2**64)


def test_a_large_seed_survives_both_databases_and_their_events(
    store: JobStore, make_spec: Callable[..., JobSpec]
) -> None:
    spec = make_spec(seed=LARGEST)
    job, _ = store.submit(Submission(spec, b"picture", spec.fingerprint(b"picture")))
    claim = store.claim("w")
    assert claim is not None
    store.event(job.id, claim.token, "decoded", {"seed": LARGEST})
    assert store.get(job.id).spec.seed == LARGEST
    assert store.events_after(0, job_id=job.id)[-1].data["seed"] == LARGEST
    assert json.loads(spec.model_dump_json())["seed"] == LARGEST
