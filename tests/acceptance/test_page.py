"""The web page in a real browser: plan, submit, watch, read the decision, cancel; usable by keyboard and on a
phone.
"""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from running_service import RunningService

sync_api = pytest.importorskip("playwright.sync_api", reason="the playwright package is not installed")
CHROMIUM = shutil.which("chromium")
PHOTO = Path(__file__).parents[2] / "app" / "assets" / "demo.jpg"
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--disable-background-networking",
    "--disable-sync",
]

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no chromium is installed")


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with sync_api.sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield running
        running.close()


def _is_complaint(line: Any) -> bool:
    # A refused plan, or a service that is getting ready, is an answer; the browser calls it a failed load.
    return line.type in ("error", "warning") and not line.text.startswith("Failed to load resource")


@pytest.fixture
def open_page(browser: Any, shared_service: RunningService) -> Iterator[Any]:
    """Opens the page; whatever the browser complains of fails the test."""
    complaints: list[str] = []
    contexts = []

    def open_one(**options: Any) -> Any:
        context = browser.new_context(**options)
        contexts.append(context)
        page = context.new_page()
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("console", lambda line: complaints.append(line.text) if _is_complaint(line) else None)
        page.goto(str(shared_service.http.base_url))
        page.wait_for_selector(".rung.chosen", timeout=60_000)
        return page

    yield open_one
    for context in contexts:
        context.close()
    assert complaints == []


@pytest.mark.slow
def test_a_photo_becomes_a_video_and_its_decision_is_told(open_page: Any) -> None:
    page = open_page()
    assert "noise" in page.inner_text("#notice")
    assert "Would decode all frames in one call" in page.inner_text("#plan-lead")
    page.set_input_files("#image", PHOTO)
    page.fill("#prompt", "the camera pans slowly to the right")
    page.keyboard.press("Tab")
    page.focus("#submit")
    page.keyboard.press("Enter")
    page.wait_for_selector(".job[data-status=running] progress", timeout=60_000)
    page.wait_for_selector(".job:first-child[data-status=succeeded] video", timeout=120_000)
    decision = page.inner_text(".job:first-child .decision")
    assert "Decoded all frames in one call" in decision
    assert "Pixel-exact" in decision
    width = page.eval_on_selector(
        ".job:first-child video", "async video => { await video.play(); return video.videoWidth; }"
    )
    assert width == 256
    page.select_option(".job:first-child .again", "per_frame")
    page.wait_for_selector(
        ".job:first-child .decision:has-text('one latent frame at a time')", timeout=120_000
    )
    page.wait_for_selector(".job:first-child[data-status=succeeded]", timeout=120_000)


@pytest.mark.slow
def test_a_job_is_canceled_from_the_page(open_page: Any) -> None:
    page = open_page()
    page.set_input_files("#image", PHOTO)
    page.fill("#prompt", "to be canceled")
    page.click("summary")
    page.fill("[name=num_frames]", "97")  # long enough that the click comes before the end
    page.fill("[name=num_inference_steps]", "100")
    page.click("#submit")
    card = page.locator(".job:has-text('to be canceled')")
    card.locator(".cancel").click(timeout=60_000)
    card.locator(".badge:has-text('Canceled')").wait_for(timeout=60_000)


def test_a_size_the_model_cannot_make_is_corrected_with_one_click(open_page: Any) -> None:
    page = open_page()
    page.click("summary")
    page.fill("[name=width]", "250")
    page.click("#plan button:has-text('Use 256')")
    page.wait_for_selector(".rung.chosen")
    assert page.input_value("[name=width]") == "256"


@pytest.mark.parametrize("colors", ["light", "dark"])
def test_nothing_stands_in_the_way_of_people_with_disabilities(open_page: Any, colors: str) -> None:
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="axe is not installed")
    page = open_page(color_scheme=colors)
    page.wait_for_selector(".device svg", timeout=30_000)
    found = axe.Axe().run(page).response["violations"]
    assert [(one["id"], one["impact"]) for one in found] == []


def test_a_phone_needs_no_sideways_scrolling(open_page: Any) -> None:
    page = open_page(viewport={"width": 360, "height": 740})
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
