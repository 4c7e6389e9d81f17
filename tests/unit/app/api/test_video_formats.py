"""A finished video in other formats, and single frames of it, over HTTP."""

import io
import os
import shutil
import subprocess
import zipfile
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any, NamedTuple

import av
import numpy as np
import pytest
from PIL import Image
from starlette.testclient import TestClient

from adaptive.types import VideoShape
from app.api.fairness.usage import over_share
from app.artifacts import converted_files
from app.artifacts.local_folder import JobArtifacts, job_artifacts
from app.config import Settings
from app.jobs import JobStatus
from app.media.formats import apart
from app.media.formats import made as made_formats
from app.media.formats.table import FORMATS, VideoFormat
from app.media.video import VideoWriter
from app.service.disposal import Disposal
from app.store import JobStore

Submit = Callable[..., dict[str, Any]]
FRAMES = 5


class Done(NamedTuple):
    """A finished job with a video of five greys."""

    url: str
    files: JobArtifacts


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("video") / "video.mp4"
    with VideoWriter(path, VideoShape(FRAMES, 32, 48), Fraction(8)) as writer:
        for number in range(FRAMES):
            writer.write(np.full((1, 32, 48, 3), 40 * number + 40, np.uint8))
        writer.finish()
    return path


@pytest.fixture
def done(submit: Submit, app_store: JobStore, settings: Settings, video: Path) -> Done:
    submit()
    claim = app_store.claim("w")
    assert claim is not None
    files = job_artifacts(settings.jobs_dir, claim.job.id).make()
    shutil.copy(video, files.video)
    result = {"frames": FRAMES, "width": 48, "height": 32, "fps": 8}
    app_store.finish(claim.job.id, claim.token, status=JobStatus.SUCCEEDED, result=result)
    return Done(f"/jobs/{claim.job.id}", files)


def grey_of(content: bytes) -> int:
    return round(float(np.asarray(Image.open(io.BytesIO(content)).convert("L")).mean()))


@pytest.mark.parametrize(
    ("name", "media_type", "begin"),
    [
        ("webm", "video/webm", b"\x1aE\xdf\xa3"),
        ("gif", "image/gif", b"GIF89a"),
        ("webp", "image/webp", b"RIFF"),
        ("png.zip", "application/zip", b"PK"),
    ],
)
def test_each_format_is_linked_made_once_and_served_with_its_name_in_ranges(
    client: TestClient, done: Done, name: str, media_type: str, begin: bytes
) -> None:
    link = client.get(done.url).json()["links"]["formats"][name]
    answer = client.get(link)
    assert answer.status_code == 200, answer.text
    headers = answer.headers
    assert (headers["content-type"], headers["framefit-pixels"]) == (media_type, "lossy")
    assert f'filename="{done.files.folder.name}.{name}"' in headers["content-disposition"]
    assert answer.content.startswith(begin)
    out = done.files.converted(name)
    made = out.stat().st_ino
    part = client.get(link, headers={"Range": "bytes=2-5"})
    assert (part.status_code, part.content) == (206, answer.content[2:6])
    assert part.headers["etag"] == headers["etag"]
    assert client.get(link, headers={"If-None-Match": headers["etag"]}).status_code == 304
    assert out.stat().st_ino == made
    head = client.head(link)
    assert (head.status_code, head.headers["content-length"]) == (200, str(len(answer.content)))


def test_the_files_go_with_the_job_and_a_new_video_has_new_ones(
    client: TestClient, done: Done, app_store: JobStore
) -> None:
    link = f"{done.url}/video?format=png.zip"
    first = client.get(link)
    later = done.files.video.stat().st_mtime_ns + 10**9
    os.utime(done.files.video, ns=(later, later))
    again = client.get(link)
    assert again.headers["etag"] != first.headers["etag"]
    with zipfile.ZipFile(io.BytesIO(again.content)) as archive:
        assert len(archive.namelist()) == FRAMES + 1
    done.files.make()
    assert done.files.video.exists()
    assert not done.files.converted("png.zip").exists(), "another decode begins"
    done.files.remove()
    assert client.get(link).json()["code"] == "result_missing"
    app_store.discard(done.files.folder.name)
    assert client.get(link).json()["code"] == "result_expired"
    assert "formats" not in client.get(done.url).json()["links"]


def test_what_cannot_be_served_is_refused_with_a_code(
    client: TestClient, done: Done, submit: Submit, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(path: str) -> tuple[int, str]:
        answer = client.get(path)
        return answer.status_code, answer.json()["code"]

    unknown = client.get(f"{done.url}/video?format=avi").json()
    assert (unknown["code"], unknown["available"]) == ("unknown_format", ["mp4", *FORMATS])
    assert refused(f"/jobs/{submit()['id']}/video?format=gif") == (409, "no_video")
    monkeypatch.setattr(
        "app.api.routes.results.converted.FORMATS", {"gif": VideoFormat("gif", "image/gif", ("no",))}
    )
    missing = client.get(f"{done.url}/video?format=gif")
    assert (missing.status_code, missing.json()["missing"]) == (422, "encoder no")
    monkeypatch.undo()
    monkeypatch.setattr(apart, "MEMORY_BYTES", 2**20)
    assert refused(f"{done.url}/video?format=webm") == (422, "conversion_too_large")
    monkeypatch.undo()

    def fill(*_given: object, **_named: object) -> None:
        raise apart.ConversionDiskFull("the file would be larger than the 5 bytes that are left")

    monkeypatch.setattr(made_formats, "convert_apart", fill)
    assert refused(f"{done.url}/video?format=webp") == (507, "disk_full")
    assert sorted(path.name for path in done.files.folder.iterdir()) == ["video.mp4"]


def test_a_conversion_during_which_the_video_is_replaced_begins_anew(
    client: TestClient, done: Done, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A decode removes partial files at its begin, and replaces the video at its end."""
    convert, attempts = made_formats.convert_apart, []

    def while_decoding(*given: Any, **named: Any) -> int:
        frames = convert(*given, **named)
        attempts.append(frames)
        if len(attempts) == 1:
            done.files.make()
        elif len(attempts) == 3:
            os.utime(done.files.video, ns=(10**18, 10**18))
        return frames

    monkeypatch.setattr(made_formats, "convert_apart", while_decoding)
    link = f"{done.url}/video?format=gif"
    assert client.get(link).status_code == 200
    assert len(attempts) == 2
    done.files.converted("gif").unlink()
    assert client.get(link).status_code == 200
    assert done.files.converted("gif").stat().st_mtime_ns == 10**18, "the new video's"
    assert sorted(path.name for path in done.files.folder.iterdir()) == ["video.gif", "video.mp4"]


def test_a_video_that_is_always_replaced_is_no_missing_one(
    client: TestClient, done: Done, monkeypatch: pytest.MonkeyPatch
) -> None:
    def replaced(_name: str, video: Path, out: Path, **_named: object) -> int:
        out.write_bytes(b"GIF89a")
        later = video.stat().st_mtime_ns + 10**9
        os.utime(video, ns=(later, later))
        return FRAMES

    monkeypatch.setattr(made_formats, "convert_apart", replaced)
    answer = client.get(f"{done.url}/video?format=gif")
    assert (answer.status_code, answer.json()["code"]) == (503, "busy")
    assert answer.headers["retry-after"]
    assert [path.name for path in done.files.folder.iterdir()] == ["video.mp4"]


def test_a_converter_that_is_killed_says_nothing_of_the_video(
    client: TestClient, done: Done, monkeypatch: pytest.MonkeyPatch
) -> None:
    kill = "import os, signal; os.kill(os.getpid(), signal.SIGKILL)"
    run = subprocess.run
    monkeypatch.setattr(
        apart.subprocess, "run", lambda command, **options: run([command[0], "-c", kill], **options)
    )
    answer = client.get(f"{done.url}/video?format=gif")
    assert (answer.status_code, answer.json()["code"]) == (503, "busy")


def test_a_video_whose_end_is_cut_off_has_no_frames_and_is_told_as_damaged(
    client: TestClient, done: Done
) -> None:
    content = done.files.video.read_bytes()
    for length in (len(content) // 2, 30, 0):
        done.files.video.write_bytes(content[:length])
        answer = client.get(f"{done.url}/frames/3.png")
        assert (answer.status_code, answer.json()["code"]) == (410, "result_missing")


def test_an_error_of_the_codec_is_told_as_a_damaged_video(
    client: TestClient, done: Done, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_given: object) -> bytes:
        raise error

    monkeypatch.setattr("app.media.formats.writers.write_frame", fail)
    for kind in (av.EOFError, av.DecoderNotFoundError, av.ExternalError, av.UnknownError, av.BugError):
        error = kind(1, "of the codec")
        answer = client.get(f"{done.url}/frames/3.png")
        assert (answer.status_code, answer.json()["code"]) == (410, "result_missing"), kind


def test_beyond_the_limit_of_all_converted_videos_the_least_recently_used_is_deleted(
    client: TestClient, done: Done, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("gif", "webp"):
        assert client.get(f"{done.url}/video?format={name}").status_code == 200
    assert client.get(f"{done.url}/video?format=gif").status_code == 200
    sizes = {name: done.files.converted(name).stat().st_size for name in ("gif", "webp")}
    monkeypatch.setattr(converted_files, "MOST_BYTES", 10_000_000)
    assert client.get(f"{done.url}/video?format=png.zip").status_code == 200
    assert all(done.files.converted(name).exists() for name in ("gif", "webp", "png.zip"))
    limit = sizes["gif"] + done.files.converted("png.zip").stat().st_size
    monkeypatch.setattr(converted_files, "MOST_BYTES", limit)
    done.files.converted("png.zip").unlink()
    assert client.get(f"{done.url}/video?format=png.zip").status_code == 200
    assert sorted(path.name for path in done.files.folder.glob("video.*")) == [
        "video.gif",
        "video.mp4",
        "video.png.zip",
    ]
    monkeypatch.setattr(converted_files, "MOST_BYTES", 1)
    assert client.get(f"{done.url}/video?format=webp").status_code == 200, "the one that was asked for stays"
    assert sorted(path.name for path in done.files.folder.glob("video.*")) == ["video.mp4", "video.webp"]


def test_converted_videos_are_deleted_before_the_disk_is_full(
    client: TestClient, done: Done, settings: Settings, app_store: JobStore
) -> None:
    assert client.get(f"{done.url}/video?format=gif").status_code == 200
    Disposal(settings, app_store).turn()
    assert done.files.converted("gif").exists()
    Disposal(settings.model_copy(update={"min_free_disk_bytes": 2**62}), app_store).turn()
    assert sorted(path.name for path in done.files.folder.iterdir()) == ["video.mp4"]


def test_a_full_disk_takes_no_other_format(client_of: Any, settings: Settings, done: Done) -> None:
    full = client_of(settings.model_copy(update={"min_free_disk_bytes": 2**62}))
    answer = full.get(f"{done.url}/video?format=gif")
    assert (answer.status_code, answer.json()["code"]) == (507, "disk_full")
    assert full.get(f"{done.url}/video").status_code == 200


def test_a_client_beyond_its_share_is_refused_before_anything_is_made(
    client: TestClient, done: Done, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full() -> None:
        raise over_share("requests that wait for videos in other formats", 16, 16)

    service: Any = client.app.state.service  # type: ignore[attr-defined]
    monkeypatch.setattr(service.shares.conversions, "hold", full)
    monkeypatch.setattr(service.shares.frames, "hold", full)
    for path in ("video?format=gif", "frames/1.png"):
        answer = client.get(f"{done.url}/{path}")
        assert (answer.status_code, answer.json()["code"]) == (429, "client_share_reached")
    assert not done.files.converted("gif").exists()


@pytest.mark.parametrize(("number", "grey"), [(0, 40), (3, 160), (-1, 200), (-5, 40)])
def test_a_frame_by_its_number_is_a_png_and_says_that_it_is_lossy(
    client: TestClient, done: Done, number: int, grey: int
) -> None:
    answer = client.get(f"{done.url}/frames/{number}.png")
    assert (answer.status_code, answer.headers["content-type"]) == (200, "image/png")
    assert answer.headers["framefit-pixels"] == "lossy"
    assert abs(grey_of(answer.content) - grey) <= 2
    etag = {"If-None-Match": answer.headers["etag"]}
    assert client.get(f"{done.url}/frames/{number}.png", headers=etag).status_code == 304


@pytest.mark.parametrize("number", ["5", "-6", "999999"])
def test_a_frame_beyond_the_video_is_not_found_and_the_answer_says_how_many_there_are(
    client: TestClient, done: Done, number: str
) -> None:
    answer = client.get(f"{done.url}/frames/{number}.png")
    assert (answer.status_code, answer.json()["code"]) == (404, "no_such_frame")
    assert answer.json()["frames"] == FRAMES


@pytest.mark.parametrize("number", ["x", "1.5", "9999999", "--1", "first-"])
def test_a_frame_must_be_a_number_first_or_last(client: TestClient, done: Done, number: str) -> None:
    assert client.get(f"{done.url}/frames/{number}.png").json()["code"] == "invalid_path_parameter"
