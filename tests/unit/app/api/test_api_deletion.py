"""From its deletion on nothing of a job is served, by any route, and soon nothing of it is left."""

import http.client
import json
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from served import served
from starlette.testclient import TestClient

from app.api import create_app
from app.artifacts.local_folder import job_artifacts
from app.config import Settings
from app.jobs import JobSpec, JobStatus, Stage
from app.scheduling.admission import LoadProfile
from app.store import JobStore
from app.store.upkeep import deletion

Post = Callable[..., dict[str, Any]]
PROMPT = "m4rk3r of a prompt"
ROUTES = [
    ("GET", ""),
    ("DELETE", ""),
    ("GET", "/events"),
    ("GET", "/image"),
    ("GET", "/image?original=true"),
    ("GET", "/last_image"),
    ("GET", "/video"),
    ("DELETE", "/video"),
    ("GET", "/thumbnail"),
    ("GET", "/previews/0.jpg"),
    ("GET", "/frames/first.png"),
    ("POST", "/redecode"),
    ("POST", "/retry"),
    ("POST", "/finish-early"),
    ("POST", "/delete"),
]
OPENAI_ROUTES = [
    ("GET", ""),
    ("DELETE", ""),
    ("GET", "/content"),
    ("GET", "/content?variant=thumbnail"),
    ("GET", "/content?variant=spritesheet"),
    ("POST", "/remix"),
]


@pytest.fixture
def job_of(client: TestClient, submit: Post, app_store: JobStore) -> Callable[[str], str]:
    """Makes a job in a state, with all its files; gives its id."""

    def make(state: str) -> str:
        job_id = str(submit(prompt=PROMPT)["id"])
        files = job_artifacts(client.app.state.service.settings.jobs_dir, job_id).make()  # type: ignore[attr-defined]
        for path in (files.video, files.thumbnail, files.spritesheet, files.preview(0), files.latents):
            path.write_bytes(b"made from the picture")
        if state == "queued":
            return job_id
        claim = app_store.claim("w")
        assert claim is not None
        app_store.progress(job_id, claim.token, stage=Stage.DECODING, progress=0.9)
        if state != "running":
            result = {"frames": 25, "thumbnail": True}
            app_store.finish(job_id, claim.token, status=JobStatus(state), result=result)
        return job_id

    return make


STATES = ["succeeded", "failed", "canceled", "running", "queued"]


@pytest.mark.parametrize("how", ["DELETE /v1/videos/{}", "POST /jobs/{}/delete"])
def test_nothing_of_a_deleted_job_is_served(
    client: TestClient, job_of: Callable[[str], str], how: str
) -> None:
    jobs = {state: job_of(state) for state in STATES}
    kept = job_of("queued")
    for state, job_id in jobs.items():
        method, path = how.format(job_id).split()
        answer = client.request(method, path)
        assert (answer.is_success, answer.json()["deleted"]) == (True, True), state
        for method, path in ROUTES:
            gone = client.request(method, f"/jobs/{job_id}{path}")
            assert (gone.status_code, gone.json().get("code")) == (410, "job_deleted"), (state, path)
            assert PROMPT not in gone.text
        for method, path in OPENAI_ROUTES:
            body = {"prompt": "another"} if method == "POST" else None
            gone = client.request(method, f"/v1/videos/{job_id}{path}", json=body)
            assert (gone.status_code, gone.json()["error"]["code"]) == (404, "no_such_job"), (state, path)
    assert [job["id"] for job in client.get("/jobs").json()["jobs"]] == [kept]
    assert [video["id"] for video in client.get("/v1/videos").json()["data"]] == [kept]
    assert client.get("/jobs", params={"status": "canceled"}).json()["jobs"] == []


def test_a_deleted_job_says_whether_it_is_erased_and_its_bytes_are_gone_then(
    client: TestClient, job_of: Callable[[str], str], app_store: JobStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(deletion, "GRACE_SECONDS", -1.0)
    service = client.app.state.service  # type: ignore[attr-defined]
    folder = service.settings.data_dir
    job_id = job_of("running")
    client.delete(f"/v1/videos/{job_id}")
    service.background.disposal.turn()
    assert client.get(f"/jobs/{job_id}").json()["erased"] is False, "its worker has not stopped"
    app_store.finish(job_id, app_store.get(job_id).token, status=JobStatus.CANCELED)
    marked = [PROMPT.encode(), b"made from the picture"]
    deadline = threading.Event()
    for _ in range(1000):  # the service's own turn may be under way
        service.background.disposal.turn()
        files = [path for path in folder.rglob("*") if path.is_file()]
        if not any(one in path.read_bytes() for path in files for one in marked):
            break
        deadline.wait(0.03)
    else:
        pytest.fail("bytes of the job are left")
    gone = client.get(f"/jobs/{job_id}")
    assert (gone.status_code, gone.json()["erased"]) == (410, True)


def test_the_images_of_a_result_that_was_deleted_are_not_served(
    client: TestClient, job_of: Callable[[str], str]
) -> None:
    job_id = job_of("succeeded")
    assert client.get(f"/jobs/{job_id}/image").status_code == 200
    assert client.delete(f"/jobs/{job_id}/video").status_code == 204
    for path in ("image", "image?original=true", "last_image", "video", "thumbnail"):
        gone = client.get(f"/jobs/{job_id}/{path}")
        assert (gone.status_code, gone.json()["code"]) == (410, "result_expired"), path
    remix = client.post(f"/v1/videos/{job_id}/remix", json={"prompt": "another"})
    assert (remix.status_code, remix.json()["error"]["code"]) == (410, "result_expired")
    assert client.get(f"/jobs/{job_id}").json()["request"]["prompt"] == PROMPT, "the job itself stays"


class Stream:
    """A stream of events over a socket; iterating gives kind, job and id of each."""

    def __init__(self, address: tuple[str, int], path: str, after: str | None = None) -> None:
        self._connection = http.client.HTTPConnection(*address, timeout=60)
        self._connection.request("GET", path, headers={} if after is None else {"Last-Event-ID": after})
        self._answer = self._connection.getresponse()
        assert self._answer.status == 200

    def __iter__(self) -> Iterator[tuple[str, str, str]]:
        fields: dict[str, str] = {}
        for line in self._answer:
            name, _, value = line.decode().strip().partition(": ")
            fields[name] = value
            if not name and "data" in fields:
                yield fields["event"], json.loads(fields["data"])["job_id"], fields["id"]
                fields = {}

    def until(self, kind: str, job_id: str) -> list[tuple[str, str, str]]:
        """The events up to this one."""
        heard = []
        for event in self:
            heard.append(event)
            if event[:2] == (kind, job_id):
                break
        return heard

    def close(self) -> None:
        self._connection.close()


@pytest.fixture
def service_at(tmp_path: Path, load_profile: LoadProfile) -> Iterator[tuple[Any, tuple[str, int]]]:
    app = create_app(Settings(data_dir=tmp_path, poll_seconds=0.02), load_profile=load_profile)
    with served(app, lifespan="on") as address:
        yield app.state.service, address


def test_a_stream_tells_of_the_deletion_and_of_nothing_after_it(
    service_at: tuple[Any, tuple[str, int]], make_spec: Callable[..., JobSpec]
) -> None:
    service, address = service_at
    store: JobStore = service.store
    everything = Stream(address, "/events")
    job_id = store.add(make_spec(), b"image").id
    one_job = Stream(address, f"/jobs/{job_id}/events")
    claim = store.claim("w")
    assert claim is not None
    begun = everything.until("claimed", job_id)
    store.delete(job_id)
    store.event(job_id, claim.token, "chunk", {})
    store.finish(job_id, claim.token, status=JobStatus.CANCELED)
    other = store.add(make_spec(), b"image").id
    told = [(kind, job) for kind, job, _ in everything.until("accepted", other)]
    assert told == [("deleted", job_id), ("accepted", other)]
    assert [kind for kind, _, _ in one_job][-1] == "deleted", "the stream of the job ends with it"
    everything.close()
    one_job.close()
    again = Stream(address, "/events", after=begun[0][2])
    assert [(kind, job) for kind, job, _ in again.until("accepted", other)] == told
    again.close()
