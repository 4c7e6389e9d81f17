"""A result whose time is over while somebody fetches it: over a real socket, from a real file."""

import http.client
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from served import served

from app.api import create_app
from app.artifacts.local_folder import job_artifacts
from app.config import Settings
from app.jobs import JobSpec, JobStatus
from app.scheduling.admission import LoadProfile
from app.store.upkeep import retention

# More than all buffers between the server's file and this client hold.
VIDEO = bytes(range(256)) * (64 * 2**20 // 256)
Api = tuple[Any, http.client.HTTPConnection]


@pytest.fixture
def api(tmp_path: Path, load_profile: LoadProfile) -> Iterator[Api]:
    """The service behind a socket, and a connection to it."""
    app = create_app(Settings(data_dir=tmp_path), load_profile=load_profile)
    with served(app, lifespan="on") as address:
        connection = http.client.HTTPConnection(*address, timeout=30)
        yield app.state.service, connection
        connection.close()


def succeeded(service: Any, spec: JobSpec) -> str:
    job = service.store.add(spec, b"image")
    claim = service.store.claim("w")
    files = job_artifacts(service.settings.jobs_dir, job.id).make()
    files.video.write_bytes(VIDEO)
    service.store.finish(claim.job.id, claim.token, status=JobStatus.SUCCEEDED, result={"frames": 25})
    return str(job.id)


def test_a_video_that_is_swept_while_it_is_fetched_arrives_whole_and_is_then_gone(
    api: Api, make_spec: Callable[..., JobSpec], monkeypatch: pytest.MonkeyPatch
) -> None:
    service, connection = api
    job_id = succeeded(service, make_spec())
    connection.request("GET", f"/jobs/{job_id}/video")
    answer = connection.getresponse()
    begun = answer.read(1000)
    monkeypatch.setattr(retention, "GRACE_SECONDS", -1.0)
    assert service.store.discard(job_id)
    service.background.disposal.expire_results()
    assert not job_artifacts(service.settings.jobs_dir, job_id).folder.exists()
    assert begun + answer.read() == VIDEO
    connection.request("GET", f"/jobs/{job_id}/video", headers={"Range": "bytes=0-9"})
    assert connection.getresponse().status == 410


def test_nothing_is_swept_in_the_time_between_its_last_answer_and_the_opening_of_its_file(
    api: Api, make_spec: Callable[..., JobSpec]
) -> None:
    service, _ = api
    job_id = succeeded(service, make_spec())
    assert service.store.discard(job_id)
    service.background.disposal.expire_results()
    assert job_artifacts(service.settings.jobs_dir, job_id).video.exists(), "marked, and deleted later"
