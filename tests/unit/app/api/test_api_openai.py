"""/v1/videos as OpenAI's own client drives it, over a real socket."""

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from served import served

from app.api import create_app
from app.artifacts.local_folder import job_artifacts
from app.config import Settings
from app.jobs import JobError, JobStatus
from app.scheduling.admission import LoadProfile
from app.store import JobStore

openai = pytest.importorskip("openai", reason="the openai package is not installed")
KEY = "k" * 24
VIDEO = b"the bytes of a video" * 100
pytestmark = pytest.mark.filterwarnings("ignore:The Sora API:DeprecationWarning")


@pytest.fixture
def server(tmp_path: Path, load_profile: LoadProfile) -> Iterator[tuple[str, JobStore, Settings]]:
    settings = Settings(data_dir=tmp_path, api_keys=(KEY,), poll_seconds=0.02)
    app = create_app(settings, load_profile=load_profile)
    with served(app) as (host, port):
        yield f"http://{host}:{port}/v1", app.state.service.store, settings


def client_for(url: str, key: str = KEY) -> Any:
    return openai.OpenAI(base_url=url, api_key=key, max_retries=0)


def finish(store: JobStore, settings: Settings, **outcome: Any) -> None:
    claim = store.claim("w")
    assert claim is not None
    job_artifacts(settings.jobs_dir, claim.job.id).make().video.write_bytes(VIDEO)
    store.finish(claim.job.id, claim.token, **outcome)


def test_a_video_is_made_watched_fetched_listed_and_deleted(
    server: tuple[str, JobStore, Settings], picture: bytes
) -> None:
    url, store, settings = server
    with client_for(url) as client:
        image = ("photo.jpg", io.BytesIO(picture), "image/jpeg")
        video = client.videos.create(
            prompt="a boat",
            model="tiny",
            input_reference=image,
            seconds="2",
            size="256x192",
            extra_body={"seed": 5},
        )
        assert (video.status, video.size, video.seconds, video.progress) == ("queued", "256x192", "2.083", 0)
        assert store.get(video.id).spec.num_frames == 25
        assert store.get(video.id).spec.seed == 5
        finish(store, settings, status=JobStatus.SUCCEEDED, result={"frames": 25})
        done = client.videos.retrieve(video.id)
        assert (done.status, done.progress) == ("completed", 100)
        assert client.videos.download_content(video.id).read() == VIDEO
        assert [one.id for one in client.videos.list(limit=5)] == [video.id]
        assert client.videos.delete(video.id).deleted
        assert store.get(video.id).expired


def test_failures_are_errors_that_the_client_understands(
    server: tuple[str, JobStore, Settings], picture: bytes
) -> None:
    url, store, settings = server
    with client_for(url) as client, client_for(url, "wrong") as stranger:
        image = ("photo.jpg", io.BytesIO(picture), "image/jpeg")
        with pytest.raises(openai.AuthenticationError):
            stranger.videos.list()
        with pytest.raises(openai.NotFoundError):
            client.videos.retrieve("nonesuch")
        with pytest.raises(openai.UnprocessableEntityError) as refusal:
            client.videos.create(prompt="a boat", input_reference=image, size="250x250")
        assert refusal.value.code == "size_not_a_multiple"
        video = client.videos.create(prompt="a boat", input_reference=image)
        finish(store, settings, status=JobStatus.FAILED, error=JobError("out_of_memory", "no room"))
        failed = client.videos.retrieve(video.id)
        assert (failed.status, failed.error and failed.error.code) == ("failed", "out_of_memory")


def test_pages_go_both_ways(server: tuple[str, JobStore, Settings], picture: bytes) -> None:
    url, _, _ = server
    with client_for(url) as client:
        ids = []
        for _ in range(3):
            image = ("photo.jpg", io.BytesIO(picture), "image/jpeg")
            ids.append(client.videos.create(prompt="a boat", input_reference=image).id)
        assert [one.id for one in client.videos.list(limit=2, order="asc")] == ids
        assert [one.id for one in client.videos.list(limit=2)] == ids[::-1]
