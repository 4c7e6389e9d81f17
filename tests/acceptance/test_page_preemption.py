"""The web page tells of a job that gave way what it keeps."""

from contextlib import closing
from pathlib import Path

import httpx
import pytest
from browser import CHROMIUM, api_alone, chromium

from app.config import Settings
from app.store import open_store

pytest.importorskip("playwright.sync_api", reason="the playwright package is not installed")
PHOTO = Path(__file__).parents[2] / "app" / "assets" / "demo.jpg"


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium is installed")
def test_a_card_tells_at_once_that_its_job_gave_way_and_keeps_its_steps(tmp_path: Path) -> None:
    settings = Settings(data_dir=tmp_path)
    with (
        chromium() as browser,
        api_alone(settings) as url,
        closing(open_store(settings)) as store,
        browser.new_context() as context,
    ):

        def queued(prompt: str, priority: int) -> str:
            fields = {"prompt": prompt, "model": "tiny", "priority": priority}
            files = {"image": PHOTO.read_bytes()}
            answer = httpx.post(f"{url}/generate", data=fields, files=files, timeout=60).raise_for_status()
            return str(answer.json()["id"])

        patient = queued("patience", 0)
        claim = store.claim("w", models=["tiny"])
        assert claim is not None
        page = context.new_page()
        page.set_default_timeout(120_000)
        page.goto(url)
        page.wait_for_selector(".job[data-status=running]:has-text('patience')")
        now = store.preempt(patient, claim.token, "w", by=queued("hurry", 5), step=12, steps=30)
        assert now is not None
        words = "Gave way to a job of higher priority; 12 of 30 steps are kept. Number 1 in the queue"
        page.wait_for_selector(f".job[data-status=queued]:has-text('{words}')")
        assert store.release(now.job.id, now.token, "worker_stopped", refund=True)
        page.reload()
        page.wait_for_selector(".job:has-text('12 of 30 steps are kept. Number 2 in the queue')")
