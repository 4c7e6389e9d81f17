"""/v1/videos as OpenAI's own client drives it, over a real socket."""

import io
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from served import served

from adaptive.types import VideoShape
from app.api import create_app
from app.artifacts.local_folder import job_artifacts
from app.config import Settings
from app.jobs import JobError, JobStatus
from app.media.thumbnails import write_jpeg
from app.media.video import VideoWriter
from app.scheduling.admission import LoadProfile
from app.service.disposal import Disposal
from app.store import JobStore
from app.store.upkeep import deletion, retention

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
        assert store.get(video.id).delete_requested
        calls = (
            client.videos.retrieve,
            client.videos.download_content,
            client.videos.delete,
            lambda video_id: client.videos.remix(video_id, prompt="x"),
        )
        for call in calls:
            with pytest.raises(openai.NotFoundError):
                call(video.id)
        assert list(client.videos.list()) == []


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


def created(client: Any, picture: bytes, **fields: Any) -> Any:
    image = ("photo.jpg", io.BytesIO(picture), "image/jpeg")
    return client.videos.create(prompt="a boat", input_reference=image, **fields)


def test_pages_follow_one_another_without_what_was_deleted(
    server: tuple[str, JobStore, Settings], picture: bytes
) -> None:
    url, _, _ = server
    with client_for(url) as client:
        ids = [created(client, picture).id for _ in range(5)]
        client.videos.delete(ids[2])
        kept = ids[:2] + ids[3:]
        for order, expected in (("asc", kept), ("desc", kept[::-1])):
            page = client.videos.list(limit=2, order=order)
            assert [one.id for one in page.data] == expected[:2]
            assert page.has_next_page()
            rest = client.videos.list(limit=2, order=order, after=page.data[-1].id)
            assert [one.id for one in rest.data] == expected[2:]
            assert not rest.has_next_page()
        assert [one.id for one in client.videos.list(order="asc", after=ids[2])] == ids[3:]


def test_a_video_that_is_deleted_while_it_is_made_is_gone_at_once_and_its_files_when_it_ends(
    server: tuple[str, JobStore, Settings], picture: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    url, store, settings = server
    with client_for(url) as client:
        video = created(client, picture)
        claim = store.claim("w")
        assert claim is not None
        assert client.videos.delete(video.id).deleted
        with pytest.raises(openai.NotFoundError):
            client.videos.retrieve(video.id)
        assert store.get(video.id).cancel_requested
        job_artifacts(settings.jobs_dir, video.id).make().video.write_bytes(VIDEO)
        store.finish(video.id, claim.token, status=JobStatus.SUCCEEDED, result={"frames": 25})
        monkeypatch.setattr(deletion, "GRACE_SECONDS", -1.0)
        Disposal(settings, store).turn()
        assert not job_artifacts(settings.jobs_dir, video.id).folder.exists()
        assert store.get(video.id).erased_at is not None


def test_create_and_poll_waits_for_the_end(server: tuple[str, JobStore, Settings], picture: bytes) -> None:
    url, store, settings = server
    found: list[Any] = []

    def run(client: Any) -> None:
        image = ("photo.jpg", io.BytesIO(picture), "image/jpeg")
        found.append(
            client.videos.create_and_poll(prompt="a boat", input_reference=image, poll_interval_ms=20)
        )

    with client_for(url) as client:
        waiting = threading.Thread(target=run, args=(client,))
        waiting.start()
        while not store.page():
            waiting.join(0.02)
            assert waiting.is_alive()
        finish(store, settings, status=JobStatus.SUCCEEDED, result={"frames": 25})
        waiting.join(60)
    assert [video.status for video in found] == ["completed"]


def test_a_remix_has_the_same_images_and_fields_and_another_prompt(
    server: tuple[str, JobStore, Settings], picture: bytes
) -> None:
    url, store, _ = server
    with client_for(url) as client:
        fields = {"seed": 5, "num_inference_steps": 3, "negative_prompt": "rain"}
        video = created(client, picture, seconds="2", size="256x192", extra_body=fields)
        remix = client.videos.remix(video.id, prompt="a ship")
        assert (remix.prompt, remix.status, remix.remixed_from_video_id) == ("a ship", "queued", video.id)
        assert remix.id != video.id
        assert client.videos.retrieve(remix.id).remixed_from_video_id == video.id
        assert client.videos.retrieve(video.id).remixed_from_video_id is None
        before, after = store.get(video.id).spec, store.get(remix.id).spec
        assert after == before.model_copy(update={"prompt": "a ship"})
        assert store.image(remix.id) == picture
        changes = {"size": "128x128", "seconds": "1", "seed": -1}
        other = store.get(client.videos.remix(video.id, prompt="a ship", extra_body=changes).id).spec
        assert (other.width, other.height, other.num_frames) == (128, 128, 17)
        assert (other.seed != 5, other.negative_prompt) == (True, "rain")
        auto = {"extra_body": {"size": "auto"}}
        like_image = store.get(client.videos.remix(video.id, prompt="a ship", **auto).id).spec
        plain = store.get(created(client, picture).id).spec
        assert (like_image.width, like_image.height) == (plain.width, plain.height) != (256, 192)


def test_a_remix_that_cannot_be_made_says_why(
    server: tuple[str, JobStore, Settings], picture: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    url, store, settings = server
    with client_for(url) as client:
        video = created(client, picture)
        refused = [
            ({"prompt": None}, "missing_field"),
            ({"prompt": ""}, "empty_prompt"),
            ({"prompt": "x", "extra_body": {"model": "nonesuch"}}, "unknown_model"),
            ({"prompt": "x", "extra_body": {"input_reference": "y"}}, "unknown_field"),
        ]
        for arguments, code in refused:
            with pytest.raises(openai.UnprocessableEntityError) as refusal:
                client.videos.remix(video.id, **arguments)
            assert refusal.value.code == code
        with pytest.raises(openai.NotFoundError):
            client.videos.remix("nonesuch", prompt="x")
        finish(store, settings, status=JobStatus.SUCCEEDED, result={"frames": 25})
        store.discard(video.id)
        monkeypatch.setattr(retention, "GRACE_SECONDS", -1.0)
        store.expire_results(lambda _job_id: None)
        with pytest.raises(openai.APIStatusError) as gone:
            client.videos.remix(video.id, prompt="x")
        assert (gone.value.status_code, gone.value.code) == (410, "result_expired")
        assert len(store.page()) == 1


def test_every_variant_of_the_content_is_served_once_the_video_is_there(
    server: tuple[str, JobStore, Settings], picture: bytes
) -> None:
    url, store, settings = server
    with client_for(url) as client:
        video = created(client, picture)
        for variant in ("video", "thumbnail", "spritesheet"):
            with pytest.raises(openai.ConflictError) as early:
                client.videos.download_content(video.id, variant=variant)
            assert early.value.code == "no_video"
        finish(store, settings, status=JobStatus.SUCCEEDED, result={"frames": 9, "thumbnail": True})
        files = job_artifacts(settings.jobs_dir, video.id)
        frames = np.zeros((9, 32, 64, 3), np.uint8)
        with VideoWriter(files.video, VideoShape(9, 32, 64), 8) as writer:
            writer.write(frames)
            writer.finish()
        write_jpeg(files.thumbnail, frames[0])
        content = client.videos.download_content
        assert content(video.id, variant="video").read() == files.video.read_bytes()
        for variant, size in (("thumbnail", (64, 32)), ("spritesheet", (256, 96))):
            answer = content(video.id, variant=variant)
            assert answer.response.headers["content-type"] == "image/jpeg"
            with Image.open(io.BytesIO(answer.read())) as shown:
                assert shown.size == size
        with pytest.raises(openai.UnprocessableEntityError) as refusal:
            content(video.id, variant="poster")
        assert "use one of video, thumbnail, spritesheet" in str(refusal.value)
        files.spritesheet.unlink()
        files.video.write_bytes(b"damaged")
        with pytest.raises(openai.APIStatusError) as gone:
            content(video.id, variant="spritesheet")
        assert (gone.value.status_code, gone.value.code) == (410, "result_missing")


def test_models_are_listed_and_found(server: tuple[str, JobStore, Settings]) -> None:
    url, _, _ = server
    with client_for(url) as client, client_for(url, "wrong") as stranger:
        names = [model.id for model in client.models.list()]
        assert {"photo-pan", "tiny", "ltx-video"} <= set(names)
        assert client.models.retrieve("tiny").model_dump(exclude_none=True) == {
            "id": "tiny",
            "object": "model",
            "created": 0,
            "owned_by": "framefit",
        }
        with pytest.raises(openai.NotFoundError):
            client.models.retrieve("org/nonesuch")
        with pytest.raises(openai.AuthenticationError):
            stranger.models.list()
