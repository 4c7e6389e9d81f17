"""The page with pictures that a browser cannot show, in a real browser."""

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from browser import CHROMIUM, Browser, chromium
from PIL import Image
from running_service import RunningService

LOADED = """async url => {
    const image = new Image();
    image.src = url;
    await image.decode();
    return image.naturalWidth;
}"""

# Chooses a picture and removes it before the browser has read it; ends when the browser has given up.
CHOSEN_AND_REMOVED = """async () => {
    const field = document.querySelector("#last_image");
    const picture = field.closest(".picture");
    const preview = picture.querySelector("img");
    const given = new DataTransfer();
    given.items.add(new File(["no picture"], "gone.png", { type: "image/png" }));
    const over = new Promise((resolve) => {
        for (const kind of ["load", "error"]) preview.addEventListener(kind, () => setTimeout(resolve));
    });
    field.files = given.files;
    field.dispatchEvent(new Event("change"));
    picture.querySelector(".remove").click();
    await over;
    return picture.querySelector(".unseen").textContent;
}"""

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no chromium is installed")


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as running:
        yield running


@pytest.fixture
def page(browser: Browser, shared_service: RunningService) -> Iterator[Any]:
    """The page; an error of its scripts fails the test."""
    errors: list[str] = []
    with browser.new_context() as context:
        opened = context.new_page()
        opened.on("pageerror", lambda error: errors.append(str(error)))
        opened.goto(str(shared_service.http.base_url))
        opened.wait_for_selector(".rung.chosen", timeout=60_000)
        yield opened
    assert errors == []


def test_a_picture_that_the_browser_cannot_show_is_named_sent_and_shown_on_its_card(
    page: Any, tmp_path: Path
) -> None:
    photo = tmp_path / "scan.tiff"
    file = io.BytesIO()
    Image.linear_gradient("L").convert("RGB").save(file, "TIFF")
    photo.write_bytes(file.getvalue())
    for kind in (".heic", "image/heic", ".tif", "image/avif", "image/bmp", "image/gif"):
        assert kind in page.get_attribute("#image", "accept").split(",")
    page.set_input_files("#image", photo)
    said = page.locator(".drop[for=image] .unseen:has-text('scan.tiff: this browser cannot show it')")
    said.wait_for(timeout=60_000)
    assert not page.is_visible(".drop[for=image] img"), "no broken picture"
    page.fill("#prompt", "a scanned picture")
    page.click("#submit")
    card = page.locator(".job:has-text('a scanned picture')")
    card.wait_for(timeout=60_000)
    job_id = card.get_attribute("data-id")
    assert page.evaluate(LOADED, f"/jobs/{job_id}/image") == 256
    page.set_input_files("#image", Path(__file__).parents[2] / "app" / "assets" / "demo.jpg")
    page.wait_for_selector(".drop[for=image] img:visible", timeout=60_000)
    assert not page.is_visible(".drop[for=image] .unseen:not(:empty)")


def test_a_picture_removed_before_it_was_read_leaves_nothing(page: Any) -> None:
    assert page.evaluate(CHOSEN_AND_REMOVED) == ""
