"""The page's slots for key frames and a last image, and the continuation of a video, in a real browser."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import httpx
import pytest
from browser import CHROMIUM, api_alone, chromium
from PIL import Image
from waiting import wait_for

from app.artifacts.local_folder import job_artifacts
from app.config import Settings
from app.jobs import JobStatus
from app.store import open_store

PHOTO = Path(__file__).parents[2] / "app" / "assets" / "demo.jpg"
MODELS = """
[models.keyed]
base = "tiny"
pipeline = "LTXConditionPipeline"

[models.between]
base = "tiny"
inputs = ["last_image"]
requires = ["last_image"]
"""
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no chromium is installed")


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    folder = tmp_path_factory.mktemp("service")
    models = folder / "models.toml"
    models.write_text(MODELS)
    return Settings(data_dir=folder / "data", models_file=models, model="tiny")


@pytest.fixture(scope="module")
def url(settings: Settings) -> Iterator[str]:
    with api_alone(settings) as address:
        yield address


@pytest.fixture
def finished(settings: Settings, url: str) -> str:
    """A job of `keyed` that has made its video."""
    fields = {"prompt": "a boat sails off", "model": "keyed", "width": "64", "height": "96", "fps": "10"}
    files = {"image": PHOTO.read_bytes()}
    job_id: str = httpx.post(f"{url}/generate", data=fields, files=files, timeout=120).json()["id"]
    artifacts = job_artifacts(settings.jobs_dir, job_id).make()
    Image.new("RGB", (64, 96), "teal").save(artifacts.frame("last"))
    with closing(open_store(settings)) as store:
        while (claim := store.claim("w", models=["keyed"])) and claim.job.id != job_id:
            store.finish(claim.job.id, claim.token, status=JobStatus.CANCELED)
        assert claim is not None
        result = {"frames": 25, "video_path": "x", "last_frame": True}
        store.finish(job_id, claim.token, status=JobStatus.SUCCEEDED, result=result)
    return job_id


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as running:
        yield running


@pytest.fixture
def page(url: str, browser: Any) -> Iterator[Any]:
    page = browser.new_page()
    page.set_default_timeout(120_000)
    page.goto(url)
    page.wait_for_selector("#model option", state="attached")
    yield page
    page.close()


def submitted(page: Any, url: str) -> dict[str, Any]:
    """The job that the form makes."""
    with page.expect_response(lambda each: each.url.endswith("/generate")) as told:
        page.click("#submit")
    assert told.value.status == 202, told.value.text()
    job: dict[str, Any] = httpx.get(f"{url}/jobs/{told.value.json()['id']}").json()
    return job


def test_slots_are_there_for_models_that_take_them_and_key_frames_are_sent(page: Any, url: str) -> None:
    assert not page.is_visible("#keyframes")
    assert not page.is_visible("#last_image")
    page.select_option("#model", "keyed")
    page.set_input_files("#image", PHOTO)
    page.fill("#prompt", "a boat")
    for number, (frame, strength) in enumerate([("8", "0.5"), ("-1", "1")], 1):
        page.get_by_role("button", name="Add a key frame").click()
        page.get_by_label(f"Picture of key frame {number}").set_input_files(PHOTO)
        page.get_by_label(f"Frame of key frame {number}").fill(frame)
        page.get_by_label(f"Strength of key frame {number}").fill(strength)
    page.get_by_role("button", name="Add a key frame").click()  # without a picture it does not count
    job = submitted(page, url)
    assert [(each["frame"], each["strength"]) for each in job["request"]["keyframes"]] == [(8, 0.5), (24, 1)]
    assert httpx.get(f"{url}{job['links']['keyframes'][1]}").content == PHOTO.read_bytes()
    page.wait_for_selector(".job .meta:has-text('key frames at 8, 24')")
    page.get_by_role("button", name="Remove key frame 1").click()
    assert page.get_by_label("Frame of key frame 1").input_value() == "-1"
    page.select_option("#model", "tiny")
    assert not page.is_visible("#keyframes")
    assert submitted(page, url)["request"]["keyframes"] == []


def test_a_model_between_two_images_asks_for_the_last_one(page: Any) -> None:
    page.select_option("#model", "between")
    page.set_input_files("#image", PHOTO)
    page.fill("#prompt", "a boat")
    page.click("#submit")
    page.wait_for_selector("#form-error:has-text('Choose a last image first')")


def test_a_video_is_continued_from_its_card(finished: str, page: Any, url: str) -> None:
    page.set_input_files("#image", PHOTO)
    page.get_by_role("button", name="Continue this video: a boat sails off").click()
    page.wait_for_selector("#continuing-what:has-text('a boat sails off')")
    assert page.input_value("#model") == "keyed"
    page.fill("#prompt", "it comes back")
    job = submitted(page, url)
    assert job["continued_from"] == finished
    assert (job["request"]["width"], job["request"]["height"], job["request"]["fps"]) == (64, 96, 10)
    page.wait_for_selector(".job .meta:has-text('continues another video')")
    page.set_input_files("#image", PHOTO)  # takes the frame's place
    page.wait_for_selector("#continuing", state="hidden")
    assert submitted(page, url)["continued_from"] is None


def test_key_frames_are_reused_and_copied_as_code(
    settings: Settings, url: str, page: Any, tmp_path: Path
) -> None:
    picture = tmp_path / "key.png"
    Image.new("RGB", (64, 96), "orange").save(picture)
    fields = {"prompt": "in between", "model": "keyed", "num_frames": "9", "width": "64", "height": "96"}
    keyframes = '[{"frame": 4, "strength": 0.5}, {"frame": -1}]'
    files = {"image": PHOTO.read_bytes(), **{f"keyframe_{n}": picture.read_bytes() for n in range(2)}}
    posted = httpx.post(f"{url}/generate", data=fields | {"keyframes": keyframes}, files=files, timeout=120)
    earlier = posted.raise_for_status().json()

    def newest() -> dict[str, Any]:
        job: dict[str, Any] = httpx.get(f"{url}/jobs?limit=1", timeout=120).json()["jobs"][0]
        return job

    def check(job: dict[str, Any]) -> None:
        assert job["request"] == earlier["request"]
        for link in job["links"]["keyframes"]:
            assert httpx.get(f"{url}{link}?original=true").content == picture.read_bytes()

    card = page.locator(f".job[data-id='{earlier['id']}']")
    card.locator(".reuse").click()
    page.wait_for_selector("#reused:has-text('and photo of an earlier video.')")
    check(submitted(page, url))
    card.locator(".code").click()
    programs = {}
    for language in ("curl", "python"):
        page.select_option("#code-language", language)
        programs[language] = page.input_value("#code-text")
    subprocess.run(["bash", "-c", programs["curl"]], cwd=tmp_path, check=True, timeout=300)
    by_curl = newest()
    check(by_curl)
    program = subprocess.Popen([sys.executable, "-c", programs["python"]], stderr=subprocess.PIPE)
    by_python = wait_for(lambda: (job := newest())["id"] != by_curl["id"] and job, 300)
    assert by_python
    check(by_python)
    with closing(open_store(settings)) as store:
        store.cancel(by_python["id"])
    assert b"canceled" in program.communicate(timeout=300)[1]
