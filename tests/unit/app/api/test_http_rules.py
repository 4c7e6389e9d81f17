"""What HTTP asks of every route alike: HEAD, OPTIONS, conditional requests, no unknown query parameters."""

import re
import socket
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from served import served
from starlette.testclient import TestClient

from app.api import create_app
from app.artifacts.local_folder import job_artifacts
from app.config import Settings
from app.jobs import JobSpec, JobStatus
from app.store import Submission

STATIC = Path(__file__).parents[4] / "app" / "api" / "static"


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestClient]:
    with TestClient(create_app(Settings(data_dir=tmp_path_factory.mktemp("data")))) as client:
        yield client


@pytest.fixture(scope="module")
def finished(client: TestClient) -> str:
    """The id of a job with a video, a thumbnail and a preview."""
    service = client.app.state.service  # type: ignore[attr-defined]
    image = (Path(__file__).parents[4] / "app" / "assets" / "demo.jpg").read_bytes()
    shape = {"width": 256, "height": 256, "num_frames": 25, "fps": 12, "num_inference_steps": 4}
    spec = JobSpec(prompt="a boat", model="tiny", guidance_scale=1.0, seed=7, **shape)
    job, _ = service.store.submit(Submission(spec, image, spec.fingerprint(image), last_image=image))
    job_id: str = job.id
    claim = service.store.claim("w")
    files = job_artifacts(service.settings.jobs_dir, job_id).make()
    for path in (files.video, files.thumbnail, files.preview(0)):
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(path.name.encode() * 1000)
    service.store.finish(job_id, claim.token, status=JobStatus.SUCCEEDED, result={"frames": 25, "fps": 12})
    return job_id


def document_of(client: TestClient) -> dict[str, Any]:
    paths: dict[str, Any] = client.get("/openapi.json").json()["paths"]
    return paths


def addresses(client: TestClient, job_id: str) -> Iterator[str]:
    """The address of every GET route of the document, the page and its files."""
    for path, methods in document_of(client).items():
        if "get" in methods:
            yield (
                re.sub(r"\{(job_id|video_id)\}", job_id, path)
                .replace("{number}", "0")
                .replace("{name}", "tiny")
            )
    yield from ("/", "/static/main.js", "/openapi.json", f"/v1/videos/{job_id}/content?variant=thumbnail")


def test_head_has_the_headers_of_get_and_no_body_on_every_route(client: TestClient, finished: str) -> None:
    seen = 0
    for address in addresses(client, finished):
        if address == "/events":  # GET does not end
            continue
        with client.stream("GET", address) as got:
            given = got.headers
            status = got.status_code
        head = client.head(address)
        assert (head.status_code, head.content) == (status, b""), address
        # What these tell changes from one moment to the next, and with it the length.
        moving = address in ("/metrics", "/healthz", "/readyz", "/devices")
        changing = ("x-request-id", "content-length") if moving else ("x-request-id",)
        assert {k: v for k, v in head.headers.items() if k not in changing} == {
            k: v for k, v in given.items() if k not in changing
        }, address
        seen += 1
    assert seen > 20
    video = client.head(f"/jobs/{finished}/video")
    assert (video.headers["content-type"], int(video.headers["content-length"])) == ("video/mp4", 9000)
    assert client.head(f"/jobs/{finished}/video", headers={"Range": "bytes=0-1"}).status_code == 200
    assert client.head("/jobs/none").status_code == 404
    assert client.head("/generate").status_code == 405


def test_head_of_an_event_stream_ends(client: TestClient, finished: str) -> None:
    for path in ("/events", f"/jobs/{finished}/events"):
        answer = client.head(path)
        assert answer.status_code == 200
        assert answer.headers["content-type"].startswith("text/event-stream")


def test_head_over_a_real_socket_leaves_the_connection_usable(tmp_path: Path) -> None:
    with (
        served(create_app(Settings(data_dir=tmp_path))) as address,
        closing(socket.create_connection(address, timeout=30)) as connection,
    ):
        for method, path in (("HEAD", "/events"), ("HEAD", "/openapi.json"), ("OPTIONS", "/jobs")):
            connection.sendall(f"{method} {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
            received = b""
            while not received.endswith(b"\r\n\r\n"):
                received += connection.recv(65536)
            assert received.startswith((b"HTTP/1.1 200", b"HTTP/1.1 204"))
        assert b"allow: GET, HEAD, OPTIONS\r\n" in received


def test_options_tells_the_methods_of_every_route(client: TestClient) -> None:
    for path, methods in document_of(client).items():
        answer = client.options(path.replace("{number}", "0"))
        expected = {method.upper() for method in methods} | {"OPTIONS"}
        expected |= {"HEAD"} if "get" in methods else set()
        allowed = set(answer.headers["allow"].split(", "))
        assert (answer.status_code, answer.content) == (204, b"")
        assert expected <= allowed, path
    assert client.options("/").headers["allow"] == "GET, HEAD, OPTIONS"
    assert client.options("/static/main.js").headers["allow"] == "GET, HEAD, OPTIONS"
    assert client.options("/nowhere").status_code == 404
    assert (
        "access-control-allow-origin"
        not in client.options(
            "/jobs", headers={"Origin": "http://evil.example", "Access-Control-Request-Method": "GET"}
        ).headers
    )


def test_a_wrong_method_is_told_all_methods_of_the_path(client: TestClient) -> None:
    answer = client.put("/jobs/x")
    assert (answer.status_code, answer.json()["code"]) == (405, "method_not_allowed")
    assert answer.headers["allow"] == "DELETE, GET, HEAD, OPTIONS"


@pytest.mark.parametrize("given", ["*", '"other", *', "ETAG", 'W/ETAG, "other"'])
@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_a_file_that_the_client_has_is_not_sent_again(
    client: TestClient, finished: str, method: str, given: str
) -> None:
    for name in ("video", "thumbnail", "previews/0.jpg"):
        path = f"/jobs/{finished}/{name}"
        first = client.get(path)
        headers = {"If-None-Match": given.replace("ETAG", first.headers["etag"])}
        answer = client.request(method, path, headers=headers)
        assert (answer.status_code, answer.content) == (304, b""), name
        assert answer.headers["etag"] == first.headers["etag"]
        assert answer.headers["cache-control"] == first.headers["cache-control"]
        assert "content-length" not in answer.headers
        ranged = client.request(method, path, headers={**headers, "Range": "bytes=0-9"})
        assert ranged.status_code == 304, "the condition comes before the range"


def test_a_condition_changes_nothing_else(client: TestClient, finished: str) -> None:
    other = {"If-None-Match": '"other"'}
    assert client.get(f"/jobs/{finished}/video", headers=other).status_code == 200
    assert client.get(f"/jobs/{finished}/video", headers={**other, "Range": "bytes=0-9"}).status_code == 206
    assert client.get(f"/jobs/{finished}/image", headers={"If-None-Match": "*"}).status_code == 304
    assert client.get("/jobs/none/video", headers={"If-None-Match": "*"}).status_code == 404
    assert client.post("/plan", json={}, headers={"If-None-Match": "*"}).status_code == 200


def test_an_unknown_query_parameter_is_refused_by_every_route(client: TestClient, finished: str) -> None:
    seen = 0
    for path, methods in document_of(client).items():
        address = re.sub(r"\{(job_id|video_id)\}", finished, path).replace("{number}", "0")
        for method in methods:
            answer = client.request(method, f"{address}?made_up=1")
            problem = answer.json()
            problem = problem.get("error", problem)
            assert (answer.status_code, problem["code"]) == (422, "unknown_parameter"), (method, path)
            assert problem["parameter"] == "made_up"
            seen += 1
    assert seen > 30
    assert client.get(f"/jobs/{finished}").json()["status"] == "succeeded", "nothing was done"
    assert client.head("/jobs?made_up=1").status_code == 422


def test_a_refusal_names_the_parameters_that_there_are(client: TestClient) -> None:
    near = client.get("/jobs?limt=3").json()
    assert "did you mean limit?" in near["detail"]
    far = client.get("/jobs?%0awritten&limit=3").json()
    assert "it takes before, cursor, limit, model, q, since, status" in far["detail"]
    assert client.get("/healthz?x").json()["detail"].endswith("it takes none")
    assert client.get("/jobs?limit=3&status=failed&model=").status_code == 200


def test_pages_and_the_pages_own_parameters_are_open(client: TestClient, finished: str) -> None:
    scripts = "".join(path.read_text() for path in STATIC.glob("*.js"))
    own = set(re.findall(r"\?(\w+)=\$\{", scripts))
    assert own == {"made", "attempt", "limit"}
    for path in ("video?made=1", "thumbnail?made=2026-01-01T00:00:00Z", "previews/0.jpg?attempt=2"):
        assert client.get(f"/jobs/{finished}/{path}").status_code == 200
    for path in ("/?utm_source=a-mail", "/static/main.js?v=3", "/openapi.json?x=1"):
        assert client.get(path).status_code == 200
    document = document_of(client)
    assert not [one for one in document["/jobs/{job_id}/video"]["get"]["parameters"] if one["name"] == "made"]
