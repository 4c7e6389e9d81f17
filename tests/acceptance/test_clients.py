"""What clients run: OpenAI's own client, many listeners at once."""

import io
import threading

import av
import httpx
import openai
import pytest
from PIL import Image
from running_service import RunningService

LISTENERS = 20
SHORT = {"width": 64, "height": 64, "num_frames": 9, "num_inference_steps": 1}


def frames_in(video: bytes) -> int:
    with av.open(io.BytesIO(video)) as container:
        return sum(1 for _ in container.decode(video=0))


def picture_size(data: bytes) -> tuple[int, int]:
    with Image.open(io.BytesIO(data)) as picture:
        return picture.size


# OpenAI ends its own service of this form; its client goes on speaking it to others.
@pytest.mark.filterwarnings("ignore:The Sora API:DeprecationWarning")
def test_openais_client_makes_a_video_and_learns_of_a_failure(shared_service: RunningService) -> None:
    client = openai.OpenAI(base_url=f"{shared_service.http.base_url}/v1", api_key="none", max_retries=0)
    picture = io.BytesIO()
    Image.linear_gradient("L").convert("RGB").save(picture, "PNG")
    shared_service.finished(shared_service.submit(**SHORT)["id"])
    video = client.videos.create_and_poll(
        prompt="a grey wall",
        input_reference=("photo.png", picture.getvalue()),
        size="64x64",  # type: ignore[arg-type]
        extra_body={"num_inference_steps": "1", "num_frames": "9"},
        poll_interval_ms=100,
    )
    assert (video.status, video.progress, video.size) == ("completed", 100, "64x64")
    assert frames_in(client.videos.download_content(video.id).content) == 9
    with pytest.raises(openai.UnprocessableEntityError) as refusal:
        client.videos.create(prompt="x", size="63x64", input_reference=("p.png", picture.getvalue()))  # type: ignore[arg-type]
    assert refusal.value.code == "size_not_a_multiple"
    remix = client.videos.poll(client.videos.remix(video.id, prompt="a wall").id, poll_interval_ms=100)
    assert (remix.status, remix.size, remix.remixed_from_video_id) == ("completed", "64x64", video.id)
    assert picture_size(client.videos.download_content(remix.id, variant="thumbnail").content) == (64, 64)
    sheet = client.videos.download_content(remix.id, variant="spritesheet").content
    assert picture_size(sheet) == (4 * 64, 3 * 64), "nine frames"
    assert client.models.retrieve(video.model).id in [model.id for model in client.models.list()]
    newest = client.videos.list(limit=1).data[0]
    assert newest.id == remix.id
    assert client.videos.list(limit=1, after=newest.id).data[0].id == video.id
    assert client.videos.delete(video.id).deleted
    for call in (client.videos.retrieve, client.videos.download_content):
        with pytest.raises(openai.NotFoundError):
            call(video.id)
    assert video.id not in [one.id for one in client.videos.list(limit=2)]
    gone = shared_service.http.get(f"/jobs/{video.id}")
    assert (gone.status_code, gone.json()["code"]) == (410, "job_deleted")


def test_every_one_of_many_listeners_hears_the_end(shared_service: RunningService) -> None:
    job_ids = [shared_service.submit(**SHORT)["id"] for _ in range(2)]
    heard: list[str] = []

    def listen(job_id: str) -> None:
        url = f"{shared_service.http.base_url}/jobs/{job_id}/events"
        with httpx.stream("GET", url, timeout=120) as answer:
            kinds = [line[7:] for line in answer.iter_lines() if line.startswith("event: ")]
        heard.append(kinds[-1])
        assert kinds[0] == "accepted"

    threads = [
        threading.Thread(target=listen, args=(job_ids[number % len(job_ids)],)) for number in range(LISTENERS)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(240)
    assert heard == ["finished"] * LISTENERS
