"""The web page shows a video while it forms, and stops its denoise early."""

from contextlib import closing
from pathlib import Path

import httpx
import pytest
from browser import CHROMIUM, api_alone, chromium

from app.artifacts.local_folder import job_artifacts
from app.config import Settings
from app.jobs import Stage
from app.store import open_store

pytest.importorskip("playwright.sync_api", reason="the playwright package is not installed")
PHOTO = Path(__file__).parents[2] / "app" / "assets" / "demo.jpg"


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium is installed")
def test_a_card_shows_each_strip_in_place_and_asks_for_an_early_end(tmp_path: Path) -> None:
    settings = Settings(data_dir=tmp_path)
    with (
        chromium() as browser,
        api_alone(settings) as url,
        closing(open_store(settings)) as store,
        browser.new_context() as context,
    ):
        answer = httpx.post(
            f"{url}/generate",
            data={"prompt": "forming", "model": "tiny"},
            files={"image": PHOTO.read_bytes()},
            timeout=60,
        )
        job_id = str(answer.raise_for_status().json()["id"])
        claim = store.claim("w", models=["tiny"])
        assert claim is not None
        assert store.progress(job_id, claim.token, stage=Stage.DENOISING, progress=0.1, kind="stage")
        artifacts = job_artifacts(settings.jobs_dir, job_id).make()

        def shows(step: int) -> list[str]:
            """The addresses of the pictures, once the page shows those of the step."""
            for number in range(3):
                artifacts.preview(number).write_bytes(PHOTO.read_bytes())
            data = {"stage": "denoising", "step": step, "steps": 30, "frames": [0, 24, 8]}
            assert store.event(job_id, claim.token, "preview", data)
            page.wait_for_selector(f".job .forming:has-text('Step {step} of 30')")
            pictures = page.locator(".job .previews div img").all()
            return [str(picture.get_attribute("src")) for picture in pictures]

        page = context.new_page()
        page.set_default_timeout(120_000)
        with page.expect_response("**/events"):  # until it is open, no event comes of the strips
            page.goto(url)
        page.wait_for_selector(".job[data-status=running]:has-text('forming')")
        first = shows(3)
        assert [source.split("?")[0].rsplit("/")[-1] for source in first] == ["0.jpg", "2.jpg", "1.jpg"]
        page.evaluate("document.querySelector('.job .previews').dataset.kept = 'yes'")
        later = shows(4)
        assert not set(first) & set(later), "pictures that were made again have other addresses"
        assert page.locator(".job .previews[data-kept]").count() == 1, "nothing flickers"
        assert not store.is_finish_early_requested(job_id)
        with page.expect_response(lambda response: response.url.endswith("/finish-early")) as asked:
            page.click(".job .finish")
        assert asked.value.status == 200
        assert store.is_finish_early_requested(job_id)
        assert page.locator(".job .finish").is_disabled(), "once is enough"
