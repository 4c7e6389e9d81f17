"""A finished video is downloaded from the page in another format, and a refusal is shown instead of saved."""

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from browser import CHROMIUM, api_alone, chromium
from PIL import Image

from adaptive.types import VideoShape
from app.artifacts.local_folder import job_artifacts
from app.config import Settings
from app.jobs import JobStatus
from app.media.video import VideoWriter
from app.store import open_store

PHOTO = Path(__file__).parents[2] / "app" / "assets" / "demo.jpg"
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no chromium is installed")


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as running:
        yield running


def finished(url: str, settings: Settings) -> Path:
    """Queue a job and do a worker's part; return its video."""
    with PHOTO.open("rb") as photo:
        answer = httpx.post(f"{url}/generate", data={"prompt": "a boat"}, files={"image": photo}, timeout=60)
    assert answer.status_code == 202, answer.text
    with closing(open_store(settings)) as store:
        claim = store.claim("w")
        assert claim is not None
        path = job_artifacts(settings.jobs_dir, claim.job.id).make().video
        with VideoWriter(path, VideoShape(3, 32, 48), 8) as writer:
            writer.write(np.zeros((3, 32, 48, 3), np.uint8))
            writer.finish()
        result = {"frames": 3, "width": 48, "height": 32, "fps": 8}
        store.finish(claim.job.id, claim.token, status=JobStatus.SUCCEEDED, result=result)
    return path


def test_another_format_is_chosen_on_the_card_and_a_refusal_is_shown(browser: Any, tmp_path: Path) -> None:
    settings = Settings(data_dir=tmp_path, model="tiny")
    with api_alone(settings) as url:
        video = finished(url, settings)
        page = browser.new_page()
        errors: list[str] = []
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.goto(url)
        choice = page.get_by_label("Download as: a boat")
        choice.wait_for(timeout=60_000)
        assert choice.locator("option").all_inner_texts() == [
            "Download as…",
            "WebM",
            "GIF",
            "WebP",
            "PNG files",
        ]
        with page.expect_download(timeout=120_000) as saved:
            choice.select_option("gif")
        assert saved.value.suggested_filename == f"{video.parent.name}.gif"
        with Image.open(saved.value.path()) as picture:
            assert (picture.format, picture.size) == ("GIF", (48, 32))
        assert choice.input_value() == ""
        video.unlink()
        choice.select_option("webp")
        page.locator(".job .problem:has-text('missing from the data folder')").wait_for(timeout=120_000)
        assert choice.is_enabled()
        page.context.close()
    assert errors == []
