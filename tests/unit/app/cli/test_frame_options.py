"""`framefit generate` with a last image, key frames, and a video that it continues."""

import json
import tomllib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import typer
from served import served
from waiting import wait_for

from app.api import create_app
from app.artifacts.local_folder import job_artifacts
from app.cli.frame_options import images_of
from app.config import Settings
from app.jobs import JobStatus
from app.models.entries import BUILT_IN_MODELS
from app.store import JobStore

DECODE = {
    "strategy": "batched",
    "frames_per_chunk": 4,
    "exact": True,
    "detail": "it fits",
    "seconds": 1.0,
    "retries": 0,
    "tiles": {"rows": 1, "columns": 1},
}


@pytest.fixture
def service(tmp_path: Path, load_profile: Any, make_picture: Any) -> Iterator[tuple[str, JobStore, Path]]:
    """A service without workers whose default model takes key frames; its table and its folder of jobs."""
    assert "tiny" in tomllib.loads(BUILT_IN_MODELS.read_text())["models"]
    (tmp_path / "models.toml").write_text(
        '[models.keyed]\nbase = "tiny"\npipeline = "LTXConditionPipeline"\n'
    )
    for name in ("photo.jpg", "between.jpg", "end.jpg"):
        (tmp_path / name).write_bytes(make_picture())
    settings = Settings(data_dir=tmp_path / "served", models_file=tmp_path / "models.toml", model="keyed")
    app = create_app(settings, load_profile=load_profile)
    with served(app, lifespan="on") as (host, port):
        yield f"http://{host}:{port}", app.state.service.store, settings.jobs_dir


def test_a_video_with_key_frames_is_made_and_continued(
    service: tuple[str, JobStore, Path], framefit: Any
) -> None:
    url, store, jobs = service

    def work() -> None:
        claim = store.claim("w", models=["keyed"])
        assert claim is not None
        artifacts = job_artifacts(jobs, claim.job.id).make()
        artifacts.video.write_bytes(b"a video")
        artifacts.frame("last").write_bytes(Path("photo.jpg").read_bytes())
        result = {"frames": 25, "last_frame": True}
        done: Any = {"result": result, "decode": DECODE, "durations": {}}
        store.finish(claim.job.id, claim.token, status=JobStatus.SUCCEEDED, **done)

    def generate(*options: str) -> Any:
        with ThreadPoolExecutor(1) as command:
            ended = command.submit(framefit, "generate", *options, "-o", "out.mp4", "--url", url, "--json")
            wait_for(lambda: ended.done() or store.counts()["queued"], 120)
            if not ended.done():
                work()
        assert ended.result().exit_code == 0, ended.result().output
        return json.loads(ended.result().stdout)["job"], ended.result().stderr

    pictures = ("--keyframe", "between.jpg@8:0.5", "--keyframe", "between.jpg@4", "--last-image", "end.jpg")
    job, told = generate("photo.jpg", "a wall", *pictures)
    assert [(each["frame"], each["strength"]) for each in job["request"]["keyframes"]] == [(8, 0.5), (4, 1)]
    assert "Key frame 2: " in told
    assert (len(store.keyframes(job["id"])), store.get(job["id"]).has_last_image) == (2, True)
    later, _ = generate("-", "the wall falls", "--continue-from", job["id"])
    assert later["continued_from"] == job["id"]
    assert store.image(later["id"]) == Path("photo.jpg").read_bytes()


@pytest.mark.parametrize(
    ("keyframe", "continue_from", "image", "told"),
    [
        ("a.jpg", None, "a.jpg", "write FILE@FRAME"),
        ("a.jpg@soon", None, "a.jpg", "write FILE@FRAME"),
        ("a.jpg@3:much", None, "a.jpg", "write FILE@FRAME"),
        ("none.jpg@3", None, "a.jpg", "'none.jpg' does not exist"),
        (None, "an-id", "a.jpg", "write - for the image"),
        (None, None, "-", "write - for the image"),
        (["a.jpg@1"] * 9, None, "a.jpg", "8 times, not 9"),
    ],
)
def test_options_that_cannot_be_are_refused(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    keyframe: str | list[str] | None,
    continue_from: str | None,
    image: str,
    told: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("a.jpg").touch()
    given = [keyframe] if isinstance(keyframe, str) else keyframe or []
    with pytest.raises(typer.BadParameter, match=told):
        images_of(Path(image), None, given, continue_from)
