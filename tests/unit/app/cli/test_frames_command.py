"""`framefit frames`, and `framefit generate` into other formats, against a service behind a real socket."""

import io
import json
import shutil
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from PIL import Image
from served import served

from adaptive.types import VideoShape
from app.api import create_app
from app.artifacts import local_folder
from app.artifacts.local_folder import job_artifacts
from app.config import Settings
from app.jobs import JobStatus
from app.media.video import VideoWriter
from app.scheduling.admission import LoadProfile
from app.store import JobStore

Framefit = Callable[..., Any]
DECODE = {
    "strategy": "batched",
    "frames_per_chunk": 4,
    "exact": True,
    "reason": "fastest",
    "detail": "batched needs at most 1.0 MiB",
    "predicted_peak_bytes": 2**20,
    "measured_peak_bytes": 2**20,
    "tiles": {"rows": 1, "columns": 1},
    "seconds": 1.0,
    "retries": 0,
}


class Served(NamedTuple):
    """A service without workers."""

    url: str
    store: JobStore
    jobs: Path


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("video") / "video.mp4"
    with VideoWriter(path, VideoShape(3, 32, 48), 8) as writer:
        for number in range(3):
            writer.write(np.full((1, 32, 48, 3), 60 * number + 40, np.uint8))
        writer.finish()
    return path


@pytest.fixture
def service(tmp_path: Path, load_profile: LoadProfile, make_picture: Any) -> Iterator[Served]:
    (tmp_path / "photo.jpg").write_bytes(make_picture())
    app = create_app(Settings(data_dir=tmp_path / "served"), load_profile=load_profile)
    with served(app, lifespan="on") as (host, port):
        yield Served(f"http://{host}:{port}", app.state.service.store, tmp_path / "served" / "jobs")


def work(service: Served, video: Path, is_over: threading.Event, decodes: int) -> None:
    """A worker's part: each job gets the video, and PNG files of the frames that are asked for.

    After so many `decodes` the latents are gone, so that nobody waits for another one.
    """
    while not is_over.wait(0.05):
        claim = service.store.claim("w")
        if claim is None:
            continue
        files = job_artifacts(service.jobs, claim.job.id).make()
        service.store.checkpoint(claim.job.id, claim.token, "latents", {"steps": 1, "seconds": 1.0})
        decodes -= 1
        files.latents.write_bytes(b"latents")
        if decodes <= 0:
            files.latents.unlink()
        shutil.copy(video, files.video)
        for number in files.asked_frames():
            Image.new("RGB", (48, 32), (number, 7, 7)).save(files.exact_frame(number))
        done = {"result": {"frames": 3, "width": 48, "height": 32, "fps": 8}, "decode": DECODE}
        service.store.finish(claim.job.id, claim.token, status=JobStatus.SUCCEEDED, durations={}, **done)


def while_working(service: Served, video: Path, run: Callable[[], Any], decodes: int = 1000) -> Any:
    is_over = threading.Event()
    with ThreadPoolExecutor(1) as worker:
        worked = worker.submit(work, service, video, is_over, decodes)
        try:
            return run()
        finally:
            is_over.set()
            worked.result()


def test_a_video_is_written_in_the_format_of_the_files_name(
    service: Served, framefit: Framefit, tmp_path: Path, video: Path
) -> None:
    arguments = ("generate", "photo.jpg", "a wall", "--url", service.url, "-o", "out.WEBP")
    ended = while_working(service, video, lambda: framefit(*arguments))
    assert ended.exit_code == 0, ended.output
    with Image.open(tmp_path / "out.WEBP") as picture:
        assert (picture.format, picture.size) == ("WEBP", (48, 32))
    assert "Making out.WEBP of the mp4" in ended.stderr


@pytest.mark.parametrize("name", ["out.mov", "out.zip", "out.png"])
def test_a_name_of_another_format_is_refused_before_the_job(
    framefit: Framefit, tmp_path: Path, name: str
) -> None:
    (tmp_path / "photo.jpg").write_bytes(b"")
    ended = framefit("generate", "photo.jpg", "a wall", "-o", name)
    assert ended.exit_code == 2
    assert f"{name} ends like no format" in " ".join(ended.stderr.split())


def test_frames_are_saved_by_number_and_say_what_they_are(
    service: Served, framefit: Framefit, tmp_path: Path, video: Path
) -> None:
    service_url = ("--url", service.url)
    arguments = ("generate", "photo.jpg", "a wall", *service_url, "-o", "out", "--json")
    job_id = json.loads(while_working(service, video, lambda: framefit(*arguments)).stdout)["job"]["id"]
    assert (tmp_path / "out").read_bytes() == video.read_bytes(), "no ending: the mp4"
    ended = framefit("frames", job_id, "1", "-1", *service_url)
    assert ended.exit_code == 0, ended.output
    assert ended.stdout.split() == ["frame-1.png", "frame--1.png"]
    for name, grey in (("frame-1.png", 100), ("frame--1.png", 160)):
        assert abs(float(np.asarray(Image.open(tmp_path / name)).mean()) - grey) < 2
    beyond = framefit("frames", job_id, "3", *service_url)
    assert beyond.exit_code == 1
    assert "the video has 3 frames" in beyond.stderr
    exact = ("frames", job_id, "1", "2", "--exact", "-o", "exact-{}.png", "--json", *service_url)
    ended = while_working(service, video, lambda: framefit(*exact))
    assert ended.exit_code == 0, ended.output
    assert json.loads(ended.stdout)["frames"] == [
        {"frame": number, "file": f"exact-{number}.png", "pixels": "decoded"} for number in ("1", "2")
    ]
    content = (tmp_path / "exact-2.png").read_bytes()
    assert np.asarray(Image.open(io.BytesIO(content)))[0, 0].tolist() == [2, 7, 7]


def test_more_exact_frames_than_a_decode_writes_come_of_as_many_decodes_as_needed(
    service: Served, framefit: Framefit, tmp_path: Path, video: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(local_folder, "MOST_ASKED_FRAMES", 2)
    arguments = ("generate", "photo.jpg", "a wall", "--url", service.url, "-o", "out", "--json")
    job_id = json.loads(while_working(service, video, lambda: framefit(*arguments)).stdout)["job"]["id"]
    exact = ("frames", job_id, "0", "1", "2", "--exact", "--url", service.url)
    ended = while_working(service, video, lambda: framefit(*exact), decodes=5)
    assert ended.exit_code == 0, ended.output
    for number in range(3):
        assert np.asarray(Image.open(tmp_path / f"frame-{number}.png"))[0, 0].tolist() == [number, 7, 7]


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("x",), "'x' is no frame"),
        (("--exakt", "1"), "'--exakt' is no frame"),
        (("1", "2", "-o", "one.png"), "several frames need several files"),
        (("1", "-o", "nowhere/one.png"), "there is no folder nowhere"),
    ],
)
def test_mistakes_are_one_line(framefit: Framefit, arguments: tuple[str, ...], told: str) -> None:
    ended = framefit("frames", "a-job", *arguments)
    assert ended.exit_code == 2
    assert told in " ".join(ended.stderr.replace("│", " ").split())
