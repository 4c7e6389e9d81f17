"""The web page in a real browser: plan, submit, watch, play, read the decision, cancel, pause, sign in; by
keyboard, on a phone and in both themes.
"""

import hashlib
import re
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from browser import CHROMIUM, api_alone, chromium
from PIL import Image
from running_service import RunningService
from waiting import wait_for

from app.config import HASH_PREFIX, Settings
from app.jobs import JobStatus, Stage
from app.service.gpus import unused as unused_gpus
from app.service.gpus.unused import UnusedGpu, UnusedReason
from app.store import open_store

sync_api = pytest.importorskip("playwright.sync_api", reason="the playwright package is not installed")
STATIC = Path(__file__).parents[2] / "app" / "api" / "static"
PHOTO = Path(__file__).parents[2] / "app" / "assets" / "demo.jpg"
UNDER_WAY = """() => {
    const part = name => document.querySelector(`.job[data-status=running] ${name}`);
    return part("progress")?.value > 0.1 && part(".what").textContent.includes("%");
}"""
SHORT = {"num_frames": 9, "num_inference_steps": 1}
KEY = "ff_a-key-of-the-studio"
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no chromium is installed")


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as running:
        yield running


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
        page.set_default_timeout(120_000)
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
def test_a_photo_becomes_a_video_that_plays_and_its_decision_is_shown(
    open_page: Any, shared_service: RunningService
) -> None:
    page = open_page()
    assert "noise" in page.inner_text("#notice")
    assert "Would decode all frames in one call" in page.inner_text("#plan-lead")
    assert "pixel-exact" in page.inner_text("#plan-facts")
    page.set_input_files("#image", PHOTO)
    page.fill("#prompt", "the camera pans slowly to the right")
    page.focus("#submit")
    page.keyboard.press("Enter")
    job = page.locator(".job:has-text('pans slowly')")
    page.wait_for_function(UNDER_WAY, timeout=60_000)
    job.locator("video").wait_for(timeout=120_000)
    decision = job.locator(".decision").inner_text()
    outcome = "Decoded all frames in one call: the fastest option"
    for text in (outcome, "predicted", "measured", "pixel-exact"):
        assert text in decision
    job.locator(".facts summary").click()
    assert {"Decode time", "Out of memory", "Regret"} <= set(job.locator("dt").all_inner_texts())
    job.locator("video").evaluate("video => video.play()")
    page.wait_for_function("() => document.querySelector('.job video').currentTime > 0.2", timeout=120_000)
    assert job.locator("video").evaluate("video => video.videoWidth") == 256
    assert job.locator(".again option >> nth=0").inner_text() == "Decode again…"
    job.locator(".again").select_option("approximate_tiled")
    job.locator(".decision:has-text('blended tiles') .chip.approximate").wait_for(timeout=120_000)
    job.locator("xpath=self::*[@data-status='succeeded']").wait_for(timeout=120_000)
    listened_to = (STATIC / "api.js").read_text().partition("const KINDS = [")[2].partition("]")[0]
    assert set(shared_service.kinds(job.get_attribute("data-id"))) <= set(re.findall(r"\w+", listened_to))


@pytest.mark.slow
def test_a_job_is_canceled_from_the_page_and_tried_again(open_page: Any) -> None:
    page = open_page()
    page.set_input_files("#image", PHOTO)
    page.fill("#prompt", "to be canceled")
    page.click("form summary >> nth=0")
    # Work for minutes: no click may come after the denoising ends.
    for name, value in {"width": 512, "height": 512, "num_frames": 257, "num_inference_steps": 100}.items():
        page.fill(f"[name={name}]", str(value))
    page.click("#submit")
    card = page.locator(".job:has-text('to be canceled')")
    for press in (".cancel", ".retry", ".cancel"):
        card.locator(press).click(timeout=60_000)
    card.locator(".badge:has-text('Canceled')").wait_for(timeout=60_000)
    assert card.locator(".again option >> nth=0").inner_text() == "Run again…", "it has no latents to decode"
    assert card.locator(".again").get_attribute("aria-label") == "Run again: to be canceled"


def test_a_job_is_deleted_from_the_page_after_a_question(
    open_page: Any, shared_service: RunningService
) -> None:
    ids = [
        shared_service.submit(prompt=f"to be deleted {name}", **SHORT)["id"] for name in ("here", "elsewhere")
    ]
    for job_id in ids:
        shared_service.finished(job_id)
    page = open_page()
    here, elsewhere = (page.locator(f".job[data-id='{job_id}']") for job_id in ids)
    for keep in ("Escape", "Enter"):  # the button that keeps the video has the focus
        here.locator(".delete").click()
        assert page.locator("#delete-what").inner_text() == "to be deleted here"
        page.keyboard.press(keep)
        page.locator("#delete-dialog").wait_for(state="hidden")
    assert shared_service.job(ids[0])["status"] == "succeeded"
    here.locator(".delete").click()
    page.locator("#delete-confirm").click()
    here.wait_for(state="detached")
    assert shared_service.http.get(f"/jobs/{ids[0]}").status_code == 410
    shared_service.http.post(f"/jobs/{ids[1]}/delete").raise_for_status()
    elsewhere.wait_for(state="detached")


def test_a_seed_of_64_bits_is_sent_and_shown_digit_for_digit(
    open_page: Any, shared_service: RunningService
) -> None:
    page = open_page()
    page.set_input_files("#image", PHOTO)
    page.fill("#prompt", "a large seed")
    page.click("form summary >> nth=0")
    page.fill("[name=num_frames]", "9")
    page.fill("[name=num_inference_steps]", "1")
    page.fill("[name=seed]", str(2**64 - 1))
    page.click("#submit")
    card = page.locator(".job:has-text('a large seed')")
    card.locator(f".meta:has-text('seed {2**64 - 1}')").wait_for()
    job = shared_service.job(card.get_attribute("data-id"))
    assert job["request"]["seed"] == 2**64 - 1


def test_a_size_the_model_cannot_make_is_corrected_with_one_click(open_page: Any) -> None:
    page = open_page()
    page.click("form summary >> nth=0")
    page.fill("[name=width]", "250")
    page.wait_for_selector("[name=width][aria-invalid=true]")
    page.wait_for_selector("#plan-lead:has-text('multiple of 32')")
    page.click("#plan-fixes button:has-text('Use 256')")
    page.wait_for_selector(".rung.chosen")
    assert page.input_value("[name=width]") == "256"


def test_the_size_follows_the_photo_unless_a_person_types_one(open_page: Any, tmp_path: Path) -> None:
    photo = tmp_path / "portrait.png"
    Image.linear_gradient("L").resize((108, 192)).save(photo)
    page = open_page()
    page.click("form summary >> nth=0")
    assert page.input_value("[name=width]") == page.input_value("[name=height]") == ""
    assert page.get_attribute("[name=height]", "placeholder") == "like the photo"
    page.set_input_files("#image", photo)
    page.wait_for_selector("#size:has-text('The video is 192 × 320. The photo of 108 × 192 is cropped')")
    page.fill("[name=width]", "256")
    page.wait_for_selector("#size:has-text('The video is 256 × 448.')")
    page.fill("[name=height]", "256")
    page.wait_for_selector("#size:has-text('42 pixels at the top, 42 pixels at the bottom')")
    page.select_option("[name=gravity]", "north")
    page.wait_for_selector("#size:has-text('84 pixels at the bottom are cut (44 % of the image)')")
    page.select_option("[name=fit]", "contain")
    page.wait_for_selector("#size:has-text('bars of 56 pixels at the left, 56 pixels at the right')")
    page.fill("#prompt", "portrait between bars")
    page.click("#submit")
    page.wait_for_selector(".job:has-text('portrait between bars') .meta:has-text('photo between bars')")
    unshown = tmp_path / "unshown.tiff"
    Image.linear_gradient("L").resize((192, 108)).save(unshown)
    with page.expect_request(sends_a_file_to_plan):  # the browser cannot show it, so the service is asked
        page.set_input_files("#image", unshown)


def sends_a_file_to_plan(sent: Any) -> bool:
    return sent.url.endswith("/plan") and "multipart" in sent.headers.get("content-type", "")


def test_a_last_image_is_dropped_and_sent_and_a_refusal_is_shown_in_units(open_page: Any) -> None:
    page = open_page()
    assert not page.is_visible("#last_image")
    page.select_option("#model", "dynamicrafter-512-interp")
    page.set_input_files("#image", PHOTO)
    drop_a_picture(page, "last_image")
    page.wait_for_selector("#size:has-text('The last photo of 8 × 8 is shown whole')")
    page.fill("#prompt", "the door opens")
    sent: list[bytes] = []

    def refuse(route: Any) -> None:
        sent.append(route.request.post_data_buffer or b"")
        detail = "decoding needs 3,221,225,472 bytes in its smallest allowed chunk"
        route.fulfill(status=422, json={"code": "does_not_fit", "detail": detail})

    page.route("**/generate", refuse)
    page.click("#submit")
    page.wait_for_selector("#form-error:has-text('needs 3.0 GiB')")
    assert b'name="image"' in sent[0]
    assert b'name="last_image"; filename="dropped.png"' in sent[0]
    page.click(".remove")
    with page.expect_response("**/generate"):
        page.click("#submit")
    assert b'name="last_image"' not in sent[1]


def drop_a_picture(page: Any, name: str) -> None:
    """Drop a small PNG, as a file manager would, on the field of that name."""
    page.evaluate(
        """async name => {
            const canvas = Object.assign(document.createElement("canvas"), { width: 8, height: 8 });
            canvas.getContext("2d").fillRect(0, 0, 8, 8);
            const blob = await new Promise(made => canvas.toBlob(made, "image/png"));
            const dataTransfer = new DataTransfer();
            dataTransfer.items.add(new File([blob], "dropped.png", { type: "image/png" }));
            const drop = new DragEvent("drop", { dataTransfer, bubbles: true, cancelable: true });
            document.getElementById(name).closest(".drop").dispatchEvent(drop);
        }""",
        name,
    )
    page.wait_for_function(
        "name => document.getElementById(name).closest('.drop').querySelector('img').naturalWidth === 8",
        arg=name,
    )


def test_a_device_is_paused_and_resumed(open_page: Any) -> None:
    page = open_page()
    page.click(".device .pause:has-text('Pause')")
    page.wait_for_selector(".device .badge:has-text('aused')")
    page.click(".device .pause:has-text('Resume')")
    page.wait_for_selector(".device[data-state=active] .badge", state="hidden")


def test_a_gpu_that_no_worker_uses_is_told_with_its_reason(
    open_page: Any, shared_service: RunningService
) -> None:
    silent = UnusedGpu("GPU-1", "GB10", UnusedReason.NO_CUDA_BUILD, "torch was built without CUDA")
    hidden = UnusedGpu("GPU-2", "GTX1060", UnusedReason.HIDDEN, "CUDA does not list it")
    left_out = UnusedGpu("GPU-3", "H200", UnusedReason.NOT_SELECTED)
    page = open_page()
    warning = page.locator("#memory > p")
    unused_gpus.publish(shared_service.data_dir, [silent, hidden, left_out])
    try:
        text = "GB10 is not used: torch was built without CUDA. Install a CUDA build of torch"
        sync_api.expect(warning).to_contain_text(text, timeout=30_000)
        sync_api.expect(warning).to_contain_text("GTX1060 is not used: CUDA does not list it.")
        sync_api.expect(warning).not_to_contain_text("H200")
    finally:
        unused_gpus.publish(shared_service.data_dir, [])
    sync_api.expect(warning).to_be_hidden(timeout=30_000)


def test_the_page_shows_which_processes_hold_the_memory_that_a_job_waits_for(
    browser: Any, tmp_path: Path
) -> None:
    settings = Settings(data_dir=tmp_path)
    holders = [
        {"own": False, "pid": 77, "name": "another program", "used_bytes": 5 * 2**30},
        {"own": True, "pid": 78, "name": "framefit", "used_bytes": 2**30},
    ]
    waiting = {"needed_bytes": 3 * 2**30, "free_bytes": 2 * 2**30, "holders": holders}
    with (
        api_alone(settings) as url,
        closing(open_store(settings)) as store,
        browser.new_context() as context,
    ):
        fields = {"prompt": "patience", "model": "tiny"}
        httpx.post(
            f"{url}/generate", data=fields, files={"image": PHOTO.read_bytes()}, timeout=60
        ).raise_for_status()
        page = context.new_page()
        opened: list[Any] = []
        # The stream opens late: what it missed must be loaded.
        page.route("**/events", lambda route: opened.append(route))
        with page.expect_request("**/events"):
            page.goto(url)
        page.wait_for_selector(".job[data-status=queued]")
        claim = store.claim("w", models=None, loaded_model=None, capacity_bytes=None, lease_seconds=60)
        assert claim is not None
        told = {"stage": Stage.WAITING_FOR_MEMORY, "kind": "waiting_for_memory", "data": waiting}
        assert store.progress(claim.job.id, claim.token, progress=0.8, **told)
        with page.expect_response("**/events"):
            opened[0].continue_()
        words = "needs at least 3.0 GiB, 2.0 GiB are free. Other programs hold: another program (5.0 GiB)."
        page.wait_for_selector(f".job:has-text('{words}')")
        page.reload()
        page.wait_for_selector(f".job:has-text('{words}')")
        assert "it fits" not in page.inner_text(".job"), "what was planned when it came does not hold now"


def test_a_card_shows_the_end_when_answers_are_late_or_fail(browser: Any, tmp_path: Path) -> None:
    settings = Settings(data_dir=tmp_path)
    with (
        api_alone(settings) as url,
        closing(open_store(settings)) as store,
        browser.new_context() as context,
    ):
        fields = {"prompt": "patience", "model": "tiny"}
        posted = httpx.post(f"{url}/generate", data=fields, files={"image": PHOTO.read_bytes()}, timeout=60)
        job_id = posted.raise_for_status().json()["id"]
        page = context.new_page()
        asked: list[Any] = []

        def answer(route: Any) -> None:
            asked.append((route, route.fetch()))
            if len(asked) == 2:
                route.abort()  # nothing follows that event, so only another try can show the end
            elif len(asked) > 2:
                route.fulfill(response=asked[-1][1])

        with page.expect_response("**/events"):  # until it is open, only the list tells of the claim
            page.goto(url)
        page.wait_for_selector(".job[data-status=queued]")
        page.route(f"**/jobs/{job_id}", answer)
        claim = store.claim("w", models=None, loaded_model=None, capacity_bytes=None, lease_seconds=60)
        assert claim is not None
        wait_for(lambda: page.wait_for_timeout(50) or asked, 60)
        assert store.finish(job_id, claim.token, status=JobStatus.CANCELED)
        page.wait_for_selector(".job[data-status=canceled]")
        outdated, running = asked[0]
        assert running.json()["status"] == "running"
        with page.expect_response(f"**/jobs/{job_id}"):
            outdated.fulfill(response=running)
        page.wait_for_timeout(500)
        assert page.locator(".job").get_attribute("data-status") == "canceled"


def test_a_model_of_one_shape_says_so_and_is_set_to_it_with_one_click(browser: Any, tmp_path: Path) -> None:
    models = tmp_path / "models.toml"
    models.write_text('[models.tiny]\nshapes = ["256x256x25"]\n')
    settings = Settings(data_dir=tmp_path, models_file=models, model="tiny")
    with api_alone(settings) as url, browser.new_context() as context:
        page = context.new_page()
        page.goto(url)
        page.click("form summary >> nth=0")
        page.wait_for_selector("#limits:has-text('can only be 256 × 256 × 25')")
        page.fill("[name=width]", "512")
        page.click("#plan-fixes button:has-text('Use 256 × 256, 25 frames')")
        assert page.input_value("[name=width]") == "256"
        page.wait_for_selector("#plan-fixes button", state="hidden")


def test_a_video_of_quantized_weights_is_labelled_approximate(browser: Any, tmp_path: Path) -> None:
    settings = Settings(data_dir=tmp_path)
    peaks = {"predicted_peak_bytes": 2**30, "measured_peak_bytes": 2**30, "tiles": {"rows": 1, "columns": 1}}
    decode = {"strategy": "batched", "frames_per_chunk": 4, "exact": True, "reason": "fits", "detail": "fits"}
    denoise = {"steps": 4, "seconds": 9.0, "exact": False, "quantized": ["transformer"], "weights": "int8"}
    with (
        api_alone(settings) as url,
        closing(open_store(settings)) as store,
        browser.new_context() as context,
    ):
        for prompt in ("rounded", "as published"):
            fields = {"prompt": prompt, "model": "tiny"}
            httpx.post(
                f"{url}/generate", data=fields, files={"image": PHOTO.read_bytes()}, timeout=60
            ).raise_for_status()
            claim = store.claim("w", models=None, loaded_model=None, capacity_bytes=None, lease_seconds=60)
            assert claim is not None
            job, token = claim.job.id, claim.token
            told = denoise if prompt == "rounded" else {**denoise, "exact": True}
            assert store.checkpoint(job, token, f"jobs/{job}/latents", told)
            report = {**decode, **peaks, "seconds": 1.0, "retries": 0}
            done = {"result": {"frames": 25}, "decode": report, "durations": {}}
            store.finish(job, token, status=JobStatus.SUCCEEDED, **done)
        page = context.new_page()
        page.goto(url)
        page.wait_for_selector(".job:has-text('rounded') .chip.approximate")
        page.wait_for_selector(".job:has-text('as published') .chip.pixel-exact")
        weights = page.text_content(".job:has-text('rounded') .facts") or ""
        assert "transformer in int8" in weights
        assert "int8" not in (page.text_content(".job:has-text('as published')") or "")


def test_who_has_a_key_signs_in_and_out(browser: Any, tmp_path: Path) -> None:
    with keyed_service(tmp_path) as url, browser.new_context() as context:
        page = context.new_page()
        page.goto(url)
        page.fill("#key", "no key of this place")
        page.press("#key", "Enter")
        page.wait_for_selector("#key-error:has-text('unknown')")
        page.fill("#key", KEY)
        page.press("#key", "Enter")
        page.wait_for_selector(".rung")
        page.wait_for_selector(".device svg")
        assert not page.is_visible(".device .pause"), "the key may not pause"
        assert KEY not in page.evaluate("document.cookie")
        page.click("#sign-out")
        page.wait_for_selector("#key-dialog[open]")


@contextmanager
def keyed_service(folder: Path) -> Iterator[str]:
    """The API alone, for holders of a key that may not administer. Its address."""
    keys = folder / "keys.toml"
    keys.write_text(f'[keys.studio]\nhash = "{HASH_PREFIX}{hashlib.sha256(KEY.encode()).hexdigest()}"\n')
    with api_alone(Settings(data_dir=folder, keys_file=keys)) as url:
        yield url


@pytest.mark.parametrize("width", [1280, 360])
@pytest.mark.parametrize("colors", ["light", "dark"])
def test_the_page_has_no_accessibility_violations(open_page: Any, colors: str, width: int) -> None:
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="axe is not installed")
    page = open_page(color_scheme=colors, viewport={"width": width, "height": 800})
    page.wait_for_selector(".device svg", timeout=30_000)
    page.evaluate("document.querySelectorAll('details').forEach(one => one.open = true)")
    found = axe.Axe().run(page).response["violations"]
    assert [(one["id"], one["impact"], one["nodes"][0]["html"][:200]) for one in found] == []
    assert page.evaluate("document.documentElement.scrollWidth") <= width, "it scrolls sideways"
