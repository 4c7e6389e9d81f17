"""Refusals are in view on the page, beside the button, and nothing on the page promises what cannot be."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from browser import CHROMIUM, api_alone, chromium

from app.config import Settings

STATIC = Path(__file__).parents[2] / "app" / "api" / "static"
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no chromium is installed")

SIZES = [(1280, 900), (390, 844)]
# Whether the middle of the element is in the window with nothing above it.
IN_VIEW = """name => {
    const element = document.querySelector(name);
    const { left, top, width, height, bottom } = element.getBoundingClientRect();
    const seen = document.elementFromPoint(left + width / 2, top + height / 2);
    return top >= 0 && bottom <= innerHeight && width > 0 && (element === seen || element.contains(seen));
}"""
# Whether the element with the focus is in the window, and no part of it behind the button and its sentences.
FOCUS_IN_VIEW = """() => {
    const element = document.activeElement;
    const { top, bottom } = element.getBoundingClientRect();
    const send = document.querySelector(".send");
    const limit = send.contains(element) ? innerHeight : send.getBoundingClientRect().top;
    const name = element.name || element.id || element.textContent;
    return { name, seen: top >= -1 && bottom <= limit + 1 };
}"""
DROPPED = """() => {
    const dataTransfer = new DataTransfer();
    dataTransfer.items.add(new File(["a text"], "notes.txt", { type: "text/plain" }));
    document.dispatchEvent(new DragEvent("drop", { dataTransfer, bubbles: true, cancelable: true }));
}"""
OpenPage = Callable[..., Any]


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as running:
        yield running


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    # One device reports once, and counts for the whole file.
    settings = Settings(data_dir=tmp_path_factory.mktemp("data"), model="tiny", heartbeat_seconds=600)
    with api_alone(settings) as url:
        yield url


@pytest.fixture
def open_page(browser: Any, address: str) -> Iterator[OpenPage]:
    """Opens the page in a window of that size; an error of its scripts fails the test."""
    errors: list[str] = []
    contexts = []

    def open_one(width: int = 1280, height: int = 900) -> Any:
        context = browser.new_context(viewport={"width": width, "height": height})
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(60_000)
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.goto(address)
        page.wait_for_selector(".rung.chosen")
        return page

    yield open_one
    for context in contexts:
        context.close()
    assert errors == []


@pytest.mark.parametrize(("width", "height"), SIZES)
def test_a_refusal_has_the_focus_beside_the_button_with_all_settings_open(
    open_page: OpenPage, width: int, height: int
) -> None:
    page = open_page(width, height)
    page.click("form summary >> nth=0")
    page.click("#submit")
    page.wait_for_selector("#form-error:has-text('Choose an image first.')")
    page.wait_for_function("document.activeElement.id === 'form-error'")
    page.wait_for_function(IN_VIEW, arg="#form-error")
    page.wait_for_function(IN_VIEW, arg="#submit")
    page.click("#show-field")
    page.wait_for_function("document.activeElement.id === 'image'")
    page.wait_for_function(IN_VIEW, arg=".drop[for=image]")
    page.fill("[name=width]", "250")
    page.wait_for_selector("#plan-lead:has-text('multiple of 32')")
    assert not page.is_visible("#form-error"), "what is typed since may have mended it"
    page.wait_for_function(IN_VIEW, arg="#plan-lead")
    page.wait_for_function(IN_VIEW, arg="#plan-fixes button")
    page.click("#submit")  # the image is asked for first; then the service refuses in the words of the plan
    page.wait_for_selector("#form-error:has-text('Choose an image first.')")
    assert page.is_visible("#plan-lead")


@pytest.mark.parametrize(("width", "height"), SIZES)
def test_no_field_that_takes_the_focus_is_behind_the_button(
    open_page: OpenPage, width: int, height: int
) -> None:
    page = open_page(width, height)
    page.evaluate("document.querySelectorAll('form details').forEach(one => one.open = true)")
    page.focus("#prompt")
    seen = [page.evaluate(FOCUS_IN_VIEW)]
    while seen[-1]["name"] != "submit":
        page.keyboard.press("Tab")
        seen.append(page.evaluate(FOCUS_IN_VIEW))
    assert [one for one in seen if not one["seen"]] == []
    assert {"width", "negative_prompt", "memory_budget_mib"} <= {one["name"] for one in seen}


def test_a_file_that_is_no_image_is_said_to_be_none_without_a_broken_picture(
    open_page: OpenPage, tmp_path: Path
) -> None:
    page = open_page()
    wrong = tmp_path / "notes.png"
    wrong.write_text("a text")
    page.set_input_files("#image", wrong)
    page.wait_for_selector(".unseen.error:has-text('notes.png: The file is not an image')")
    assert not page.is_visible(".drop[for=image] img")
    page.wait_for_function(IN_VIEW, arg="#plan-lead")
    page.fill("#prompt", "a wall")
    page.click("#submit")
    page.wait_for_selector("#form-error:has-text('The file is not an image')")
    assert not page.is_visible("#plan-lead"), "it is not said twice"
    page.set_input_files("#image", Path(__file__).parents[2] / "app" / "assets" / "demo.jpg")
    page.wait_for_selector(".drop[for=image] img:visible")
    assert page.inner_text(".drop[for=image] .unseen") == ""
    page.evaluate(DROPPED)
    page.wait_for_selector(".unseen.error:has-text('notes.txt: The file is not an image')")


def test_no_time_is_promised_while_every_device_is_paused(open_page: OpenPage) -> None:
    page = open_page()

    page.click(".device .pause:has-text('Pause')")
    try:
        page.wait_for_selector(
            "#memory > p:has-text('Every device is paused: jobs wait until one is resumed.')"
        )
        page.wait_for_selector("#service-state:has-text('1 worker (paused)')")
        page.fill("[name=num_frames]", "17")
        page.wait_for_selector(
            "#plan-facts:has-text('Every device is paused: the video is made when one is')"
        )
        assert "Done in" not in page.inner_text("#plan-facts")
    finally:
        page.click(".device .pause:has-text('Resume')")
    page.wait_for_selector("#service-state:has-text('1 worker ·')")


def test_an_option_that_needs_more_than_a_faster_one_is_explained_and_has_no_bar(open_page: OpenPage) -> None:
    page = open_page()

    def heavier(route: Any) -> None:
        answer = route.fetch()
        body = answer.json()
        batched, chunked = body["rungs"][:2]
        chunked["predicted_peak_bytes"] = batched["predicted_peak_bytes"] + 2**20
        body["eta_range"] = {"low_seconds": 22.4, "high_seconds": 40.1}
        route.fulfill(response=answer, json=body)

    assert page.locator(".rung").first.inner_text().startswith("Batched")
    assert page.locator(".rung:has-text('Chunked')").count() == 1
    assert page.locator(".rung:has-text('Tiled')").count() == 1
    page.route("**/plan", heavier)
    page.fill("[name=fps]", "13")
    page.locator(".rung:has-text('Chunked')").wait_for(state="detached")
    listed = page.locator(".ways li:has-text('Chunked × 2')").text_content()
    assert "a faster option needs no more memory: the state kept between chunks counts, too" in listed
    assert "Done in 22 to 41 s, including the queue." in page.inner_text("#plan-facts")


def test_the_page_uses_the_api_s_words_for_strategies() -> None:
    for name in ("index.html", "words.js"):
        text = (STATIC / name).read_text(encoding="utf-8")
        assert "Strips" not in text
        assert "Tiled" in text
