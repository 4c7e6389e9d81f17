"""GET /jobs/videos.zip: several videos in one file, or a refusal before the first byte."""

import io
import zipfile
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any

import httpx
import pytest
from served import served
from starlette.testclient import TestClient

from app.api import create_app
from app.api.routes.results import archive
from app.artifacts.local_folder import job_artifacts
from app.config import HASH_PREFIX, Settings
from app.jobs import JobSpec, JobStatus
from app.scheduling.admission import LoadProfile
from app.store import JobStore, Submission

Post = Callable[..., dict[str, Any]]


def digest(name: str) -> str:
    return sha256((name * 20).encode()).hexdigest()


def finish(store: JobStore, settings: Settings, video: bytes) -> None:
    claim = store.claim("w")
    assert claim is not None
    job_artifacts(settings.jobs_dir, claim.job.id).make().video.write_bytes(video)
    store.finish(claim.job.id, claim.token, status=JobStatus.SUCCEEDED, result={"frames": 25})


def test_several_videos_come_in_one_zip_file(
    client: TestClient, submit: Post, app_store: JobStore, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(archive, "BLOCK_BYTES", 1000)
    prompts = ["The camera, slowly: left/../right — ÄÖ", "ÄÖÜ"]
    jobs = [submit(prompt=prompt) for prompt in prompts]
    videos = [bytes(range(256)) * 40, b""]
    for video in videos:
        finish(app_store, settings, video)
    ids = [job["id"] for job in jobs]
    answer = client.get("/jobs/videos.zip", params={"ids": ",".join([*ids, ids[0]])})
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "application/zip"
    assert answer.headers["content-disposition"] == 'attachment; filename="framefit-videos.zip"'
    with zipfile.ZipFile(io.BytesIO(answer.content)) as found:
        assert found.testzip() is None
        assert found.namelist() == [f"the-camera-slowly-left-right-{ids[0]}.mp4", f"{ids[1]}.mp4"]
        assert [found.read(name) for name in found.namelist()] == videos
        assert found.infolist()[0].date_time[0] >= 2026


def test_a_zip_file_is_refused_as_a_whole_before_its_first_byte(
    client: TestClient, submit: Post, app_store: JobStore, settings: Settings
) -> None:
    done, lost, waits = (submit()["id"] for _ in range(3))
    for _ in range(2):
        finish(app_store, settings, b"video")
    job_artifacts(settings.jobs_dir, lost).video.unlink()

    def refused(*ids: str) -> tuple[int, str, bool]:
        answer = client.get("/jobs/videos.zip", params={"ids": ",".join(ids)})
        return answer.status_code, answer.json()["code"], ids[-1] in answer.json()["detail"]

    assert refused(done, waits) == (409, "no_video", True)
    assert refused(done, lost) == (410, "result_missing", True)
    assert refused(done, "nonesuch") == (404, "no_such_job", True)
    assert refused(*(f"{number:032x}" for number in range(101)))[:2] == (422, "too_many_videos")
    for wrong in ("", "../x", f"{done},", "a" * 65):
        assert refused(wrong)[:2] == (422, "invalid_query_parameter")
    app_store.delete(done)
    assert refused(done) == (410, "job_deleted", True)


def test_a_zip_file_has_no_videos_of_other_keys(
    client_of: Callable[..., TestClient], tmp_path: Path, make_spec: Callable[..., JobSpec]
) -> None:
    keys = tmp_path / "keys.toml"
    rows = [f'[keys.{name}]\nhash = "{HASH_PREFIX}{digest(name)}"\n' for name in ("anne", "ben")]
    keys.write_text("".join(rows))
    settings = Settings(data_dir=tmp_path, keys_file=keys)
    client = client_of(settings)
    service = client.app.state.service  # type: ignore[attr-defined]
    store: JobStore = service.store
    spec = make_spec()
    job = store.submit(Submission(spec, b"x", "f", owner=service.keys.find("anne" * 20).owner))[0]
    finish(store, settings, b"video")
    for name, status in (("anne", 200), ("ben", 404)):
        answer = client.get("/jobs/videos.zip", params={"ids": job.id}, headers={"X-API-Key": name * 20})
        assert answer.status_code == status


def test_a_video_that_vanishes_while_it_is_sent_ends_the_connection(
    tmp_path: Path,
    load_profile: LoadProfile,
    make_spec: Callable[..., JobSpec],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    settings = Settings(data_dir=tmp_path)
    service = create_app(settings, load_profile=load_profile)
    with served(service, lifespan="on") as (host, port):
        store = service.state.service.store
        ids = [store.add(make_spec(), b"image").id for _ in range(2)]
        for _ in ids:
            finish(store, settings, b"video")
        named: list[str] = []
        name_of = archive.name_of

        def name_and_lose(job: Any) -> str:
            named.append(job.id)
            if len(named) == 2:
                job_artifacts(settings.jobs_dir, job.id).video.unlink()
            return name_of(job)

        monkeypatch.setattr(archive, "name_of", name_and_lose)
        with pytest.raises(httpx.RemoteProtocolError, match="peer closed connection"):
            httpx.get(f"http://{host}:{port}/jobs/videos.zip", params={"ids": ",".join(ids)}, timeout=60)
        assert named == ids
