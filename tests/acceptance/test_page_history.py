"""The page's history: search, several videos at once, an earlier job's settings and code, the memory of the
last hour, and several photos.
"""

import json
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import pytest
from browser import CHROMIUM, api_alone, chromium
from waiting import wait_for

from app.artifacts.local_folder import job_artifacts
from app.config import Settings
from app.jobs import Claim, Job, JobSpec, JobStatus, Stage
from app.store import JobStore, Submission, open_store

PHOTO = Path(__file__).parents[2] / "app" / "assets" / "demo.jpg"
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no chromium is installed")
# What a shell, a form, a terminal or Python could take for something else.
PROMPT = "@a 'quote', \"another\", `id` $(id) ${HOME} \\n \\ !x %s;type=a/b\r\n\tnächste Zeile \x1b[31m 🙂"
SETTINGS = {
    "prompt": PROMPT,
    "negative_prompt": "<file",
    "model": "tiny",
    "num_frames": "17",
    "fps": "24000/1001",
    "num_inference_steps": "3",
    "guidance_scale": "1.5",
    "seed": str(2**64 - 1),
    "priority": "1",
    "decode_strategy": "chunked",
    "frames_per_chunk": "2",
    "exact_only": "false",
    "memory_budget_bytes": "1073741825",
    "gravity": "north",
    "embed_metadata": "false",
}
PLAN = {"predicted_peak_bytes": 2**30, "strategy": "batched", "reason": "fastest", "vae": "tiny"}
ONLY = "id => [...document.querySelectorAll('.job')].map(card => card.dataset.id).join() === id"
SECONDS_IN_VIEW = """async () => {
    const { from, to } = (await import("/static/zoom.js")).view();
    return (to - from) / 1000;
}"""
DECODE = ".decodes li:has(a[href='#job-{}'])"
# The service takes the next requests for videos, but the page does not get its answers.
LOSE_ANSWERS = """many => {
    const before = window.fetch;
    window.fetch = async (...request) => {
        const answer = await before(...request);
        if (request[0].endsWith("/generate") && many-- > 0) throw new TypeError("Failed to fetch");
        return answer;
    };
}"""
OpenPage = Callable[..., Any]


class Service:
    """An API without workers, whose jobs the test makes and ends."""

    def __init__(self, url: str, settings: Settings, store: JobStore) -> None:
        self.url = url
        self.store = store
        self.settings = settings
        self._spec: JobSpec | None = None

    def add(self, *prompts: str) -> list[str]:
        """Queue jobs without a photo, all at once; return their ids."""
        spec = self._spec or self.store.get(self.submit(num_frames="9")).spec
        self._spec = spec
        specs = [spec.model_copy(update={"prompt": prompt}) for prompt in prompts]
        added = self.store.submit_all([Submission(one, b"x", one.fingerprint(b"x")) for one in specs])
        return [job.id for job, _ in added]

    def submit(self, **fields: str) -> str:
        form = {"prompt": "x", "model": "tiny", **fields}
        files = {"image": PHOTO.read_bytes()}
        answer = httpx.post(f"{self.url}/generate", data=form, files=files, timeout=60)
        job_id: str = answer.raise_for_status().json()["id"]
        return job_id

    def end(self, status: JobStatus = JobStatus.SUCCEEDED) -> str:
        """Do a worker's part: claim the next job, decode it and end it."""
        claim = self.store.claim("w", models=None, loaded_model=None, capacity_bytes=None, lease_seconds=600)
        assert claim is not None
        job_id, token = claim.job.id, claim.token
        self.decode(claim)
        video = job_artifacts(self.settings.jobs_dir, job_id).make().video
        video.write_bytes(job_id.encode())
        result = {"frames": 25} if status is JobStatus.SUCCEEDED else None
        self.store.finish(job_id, token, status=status, result=result)
        return job_id

    def decode(self, claim: Claim) -> None:
        self.store.event(claim.job.id, claim.token, "plan", PLAN)
        self.store.progress(claim.job.id, claim.token, stage=Stage.DECODING, progress=0.8, kind="stage")

    def made(self, *, besides: set[str]) -> Job:
        """The job that is there beside the others."""
        return wait_for(
            lambda: next((job for job in self.store.page(limit=200) if job.id not in besides), None), 120
        )

    def ids(self) -> set[str]:
        return {job.id for job in self.store.page(limit=200)}


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as running:
        yield running


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    settings = Settings(data_dir=tmp_path_factory.mktemp("data"), model="tiny", heartbeat_seconds=600)
    with api_alone(settings) as url, closing(open_store(settings)) as store:
        yield Service(url, settings, store)


@pytest.fixture
def open_page(browser: Any, service: Service) -> Iterator[OpenPage]:
    """Opens the page; whatever the browser complains of fails the test."""
    complaints: list[str] = []
    contexts = []

    def open_one(**options: Any) -> Any:
        context = browser.new_context(**{"viewport": {"width": 1280, "height": 900}, **options})
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(20_000)
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("console", lambda line: complaints.append(line.text) if _is_complaint(line) else None)
        page.goto(service.url)
        page.wait_for_selector(".rung.chosen")
        return page

    yield open_one
    for context in contexts:
        context.close()
    assert complaints == []


def _is_complaint(line: Any) -> bool:
    # A refused plan or job is an answer; the browser calls it a failed load.
    return line.type in ("error", "warning") and not line.text.startswith("Failed to load resource")


def _listed(page: Any) -> list[str]:
    found: list[str] = page.locator(".job").evaluate_all("cards => cards.map(card => card.dataset.id)")
    return found


def test_videos_are_searched_filtered_and_paged(open_page: OpenPage, service: Service) -> None:
    boats = service.add(*(f"a Boat, number {number}" for number in range(24)))
    service.end()  # the one before the boats
    ended = [service.end() for _ in range(2)]
    failed = service.end(JobStatus.FAILED)
    (pan,) = service.add("a slow pan")
    page = open_page()
    page.wait_for_selector("#more:visible")
    page.fill("#find-q", "BOAT number")
    page.wait_for_selector("#found:has-text('20 videos found so far.')")
    assert _listed(page) == boats[:3:-1]
    page.click("#more:has-text('Search older')")
    page.wait_for_selector("#found:has-text('24 videos found.')")
    assert _listed(page) == boats[::-1]
    assert page.is_hidden("#more")
    page.select_option("#find-status", "ended")
    page.wait_for_selector("#found:has-text('3 videos found.')")
    assert _listed(page) == [failed, *ended[::-1]]
    page.select_option("#find-status", "failed")
    page.wait_for_selector("#found:has-text('1 video found.')")
    page.select_option("#find-model", "photo-pan")
    page.wait_for_selector("#found:has-text('No video found.')")
    page.click("#find-clear")
    page.wait_for_selector(f".job[data-id='{pan}']")
    assert page.evaluate("document.activeElement.id") == "find-q"
    page.keyboard.type(pan)
    page.wait_for_function(ONLY, arg=pan)
    service.add("queued elsewhere meanwhile")
    service.store.cancel(pan)  # its event comes later
    page.wait_for_selector(".job .badge:has-text('Canceled')")
    assert _listed(page) == [pan]


def test_several_videos_are_downloaded_and_deleted_at_once(
    open_page: OpenPage, service: Service, tmp_path: Path
) -> None:
    while service.store.counts()[JobStatus.QUEUED]:
        service.end(JobStatus.CANCELED)
    ids = service.add(*(f"shelf {number}" for number in range(4)))
    for status in (*[JobStatus.SUCCEEDED] * 3, JobStatus.FAILED):
        service.end(status)
    page = open_page()
    page.fill("#find-q", "shelf")
    page.wait_for_selector("#found:has-text('4 videos found.')")
    page.focus(f".job[data-id='{ids[0]}'] .pick")
    page.keyboard.press("Space")
    page.wait_for_selector("#chosen-count:has-text('1 selected')")
    page.click("#chosen-all")
    with page.expect_download() as started:
        page.click("#chosen-download")
    page.wait_for_selector("#chosen-said:has-text('3 videos are downloaded; 1 without a video left out.')")
    started.value.save_as(tmp_path / "videos.zip")
    with zipfile.ZipFile(tmp_path / "videos.zip") as found:
        assert sorted(found.read(name).decode() for name in found.namelist()) == ids[:3]
    lost = job_artifacts(service.settings.jobs_dir, ids[1]).video
    lost.rename(lost.with_suffix(".lost"))
    page.click("#chosen-download")
    page.wait_for_selector(f"#chosen-said:has-text('the video\\'s file of job {ids[1]} is missing')")
    lost.with_suffix(".lost").rename(lost)
    page.uncheck(f".job[data-id='{ids[0]}'] .pick")
    page.wait_for_selector("#chosen-count:has-text('3 selected')")
    page.click("#chosen-delete")
    page.wait_for_selector("#delete-title:has-text('Delete these 3 videos?')")
    page.keyboard.press("Enter")  # the button that keeps them has the focus
    page.locator("#delete-dialog").wait_for(state="hidden")
    refused = {"code": "store_unavailable", "detail": "the disk is full"}
    page.route(f"**/jobs/{ids[2]}/delete", lambda route: route.fulfill(status=503, json=refused))
    page.click("#chosen-delete")
    page.click("#delete-confirm")
    page.wait_for_selector(
        "#chosen-said:has-text('2 videos were deleted. 1 could not be: the disk is full.')"
    )
    assert sorted(_listed(page)) == [ids[0], ids[2]]
    page.wait_for_selector(f".job[data-id='{ids[2]}'] .problem:has-text('the disk is full')")
    assert [service.store.get(job_id).delete_requested for job_id in ids] == [False, True, False, True]


def test_settings_seed_and_photo_of_a_video_are_used_again(open_page: OpenPage, service: Service) -> None:
    earlier = service.store.get(service.submit(**SETTINGS))
    page = open_page()
    page.fill("#prompt", "something else")
    page.fill("[name=num_frames]", "9")
    page.click(f".job[data-id='{earlier.id}'] .reuse")
    page.wait_for_selector(f"#reused:has-text('Settings, seed {2**64 - 1} and photo of an earlier video.')")
    page.wait_for_selector(".drop[for=image] img:visible")
    assert page.evaluate("document.activeElement.id") == "prompt"
    known = service.ids()
    page.click("#submit")
    again = service.made(besides=known)
    assert _same(again) == _same(earlier)
    assert service.store.image(again.id) == PHOTO.read_bytes()
    page.route("**/image?original=true", lambda route: route.abort())
    page.click(f".job[data-id='{earlier.id}'] .reuse")
    page.wait_for_selector("#reused:has-text('Its photo could not be fetched: choose one.')")


def test_a_reused_video_keeps_how_it_was_made_out_of_the_files_as_before(
    open_page: OpenPage, service: Service
) -> None:
    silent = service.submit(embed_metadata="false")
    telling = service.submit()
    page = open_page()
    for earlier, says in ((silent, False), (telling, True)):
        page.click(f".job[data-id='{earlier}'] .reuse")
        page.wait_for_selector("#reused:has-text('of an earlier video.')")
        page.evaluate("document.querySelectorAll('details').forEach(one => one.open = true)")
        assert page.get_by_label("Say in the files how they were made").is_checked() is says
        known = service.ids()
        page.click("#submit")
        assert service.made(besides=known).spec.embed_metadata is says


def test_a_service_whose_files_never_say_how_they_were_made_does_not_offer_it(
    browser: Any, tmp_path: Path
) -> None:
    settings = Settings(data_dir=tmp_path, model="tiny", heartbeat_seconds=600, embed_metadata=False)
    with api_alone(settings) as url:
        page = browser.new_page()
        page.goto(url)
        page.wait_for_selector(".rung.chosen")
        page.evaluate("document.querySelectorAll('details').forEach(one => one.open = true)")
        assert page.is_visible("[name=exact_only]")
        assert page.is_hidden("[name=embed_metadata]")


def test_a_reused_video_whose_photo_cannot_be_fetched_leaves_no_other_photo_chosen(
    open_page: OpenPage, service: Service
) -> None:
    earlier = service.submit()
    page = open_page()
    page.fill("#prompt", "of other photos")
    page.set_input_files("#image", [PHOTO, PHOTO])
    page.wait_for_selector("#submit:has-text('Make 2 videos')")
    page.route("**/image?original=true", lambda route: route.abort())
    page.click(f".job[data-id='{earlier}'] .reuse")
    page.wait_for_selector("#reused:has-text('Its photo could not be fetched: choose one.')")
    page.locator("#batch").wait_for(state="hidden")
    assert page.inner_text("#submit") == "Make the video"
    known = service.ids()
    page.click("#submit")
    page.wait_for_selector("#form-error:has-text('Choose an image first.')")
    assert service.ids() == known
    page.set_input_files("#image", PHOTO)  # the same file may be chosen again
    page.wait_for_selector(".drop[for=image] img:visible")


def _same(job: Job) -> dict[str, Any]:
    """The job's fields. A form sends every line's end as CR and LF."""
    fields = json.loads(job.spec.model_dump_json())
    fields["prompt"] = fields["prompt"].replace("\r\n", "\n")
    return fields


def test_a_video_is_copied_as_a_shell_command_and_as_python_and_both_make_it_again(
    open_page: OpenPage, service: Service, tmp_path: Path
) -> None:
    earlier = service.store.get(service.submit(**SETTINGS))
    page = open_page(permissions=["clipboard-read", "clipboard-write"])
    page.click(f".job[data-id='{earlier.id}'] .code")
    texts = {}
    for language in ("curl", "python"):
        page.select_option("#code-language", language)
        page.click("#code-copy")
        page.wait_for_selector("#code-said:has-text('Copied.')")
        texts[language] = page.evaluate("navigator.clipboard.readText()").replace("\r\n", "\n")
    page.keyboard.press("Escape")
    page.locator("#code-dialog").wait_for(state="hidden")
    assert not any(each in text for text in texts.values() for each in "\x1b\t\r")
    if shutil.which("curl") and shutil.which("bash"):
        known = service.ids()
        subprocess.run(["bash", "-c", texts["curl"]], cwd=tmp_path, check=True, timeout=120)
        again = service.made(besides=known)
        assert json.loads(again.spec.model_dump_json()) == json.loads(earlier.spec.model_dump_json())
        assert service.store.image(again.id) == PHOTO.read_bytes()
    known = service.ids()
    program = subprocess.Popen([sys.executable, "-c", texts["python"]], cwd=tmp_path, stderr=subprocess.PIPE)
    again = service.made(besides=known)
    service.store.cancel(again.id)
    assert b"canceled" in program.communicate(timeout=120)[1]
    assert json.loads(again.spec.model_dump_json()) == json.loads(earlier.spec.model_dump_json())
    assert service.store.image(again.id) == PHOTO.read_bytes()


def test_a_key_is_named_but_never_in_the_code(open_page: OpenPage) -> None:
    page = open_page()
    texts = page.evaluate(
        """async () => {
            const { curl, python } = await import("/static/snippets.js");
            const request = { prompt: "p", webhook_url: "https://example.org/a-secret", image_size: "8x8" };
            const job = { id: "1", seed: "5", request, links: {} };
            return [curl(job, true), python(job, true), curl(job, false), python(job, false)];
        }"""
    )
    assert all("a-secret" not in text and "image_size" not in text for text in texts)
    assert all("FRAMEFIT_API_KEY" in text for text in texts[:2])
    assert not any("FRAMEFIT_API_KEY" in text for text in texts[2:])
    assert all("photo of this job was deleted" in text for text in texts)


def test_the_chart_begins_before_the_page_and_is_zoomed_and_leads_to_the_decodes_jobs(
    open_page: OpenPage, service: Service
) -> None:
    (job_id,) = service.add("a decode in the chart")
    while service.end() != job_id:
        pass
    wait_for(lambda: httpx.get(f"{service.url}/devices/memory", timeout=60).json()["devices"], 120)
    page = open_page()
    page.wait_for_selector(".device .band")
    for _ in range(2):
        begun = "(await import('/static/timeline.js')).of('w')[0].at - performance.timeOrigin"
        assert page.evaluate(f"async () => {begun}") < 0, "the service has kept what was before"
        page.reload()
        page.wait_for_selector(".device .band")
    page.wait_for_selector(".device .predicted", state="attached")

    def span() -> float:
        seconds: float = page.evaluate(SECONDS_IN_VIEW)
        return seconds

    whole = span()
    page.focus(".plot")
    page.keyboard.press("+")
    assert span() == pytest.approx(whole / 2, rel=0.05)
    page.keyboard.press("ArrowLeft")
    page.wait_for_selector("#zoom-range:visible")
    page.keyboard.press("Home")
    assert page.is_disabled("#zoom-reset")
    page.hover(".plot")
    page.mouse.wheel(0, -100)
    page.wait_for_function("() => !document.querySelector('#zoom-reset').disabled")
    assert span() < 0.9 * whole
    page.click("#zoom-reset")
    box = page.locator(".plot").bounding_box()
    page.mouse.move(box["x"] + box["width"] * 0.5, box["y"] + 20)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] * 0.75, box["y"] + 20)
    page.mouse.up()
    assert span() == pytest.approx(whole / 4, rel=0.05)
    page.click("#zoom-reset")
    page.fill("#find-q", "nothing of the kind")
    page.wait_for_selector("#found:has-text('No video found.')")
    page.click(".decodes summary")
    page.click(f".decodes a[href='#job-{job_id}']")
    page.wait_for_selector(f".job[data-id='{job_id}']")
    page.wait_for_function("id => document.activeElement.dataset.id === id", arg=job_id)


def test_the_decode_of_a_worker_that_died_runs_no_longer_in_the_chart(
    open_page: OpenPage, service: Service
) -> None:
    while service.store.counts()[JobStatus.QUEUED]:
        service.end(JobStatus.CANCELED)
    (job_id,) = service.add("its worker dies")
    page = open_page()
    forgotten = {"now": datetime.now(UTC).isoformat(), "devices": [], "decodes": []}
    for service_knows in (True, False):
        claim = service.store.claim(
            "w", models=None, loaded_model=None, capacity_bytes=None, lease_seconds=600
        )
        assert claim is not None
        assert claim.job.id == job_id
        service.decode(claim)
        page.wait_for_selector(f"{DECODE.format(job_id)}:has-text(', runs')", state="attached")
        if not service_knows:  # as after a restart of the API
            page.route("**/devices/memory?*", lambda route: route.fulfill(json=forgotten))
        service.store.release(job_id, claim.token, "worker_died")
        page.locator(f"{DECODE.format(job_id)}:has-text(', runs')").wait_for(state="detached")
        assert page.locator(DECODE.format(job_id)).count() == (1 if service_knows else 2)
    service.store.cancel(job_id)


def test_several_photos_make_a_video_each_and_a_refusal_is_said_beside_its_photo(
    open_page: OpenPage, service: Service, tmp_path: Path
) -> None:
    broken = tmp_path / "broken.jpg"
    broken.write_bytes(b"no picture")
    other = tmp_path / "other.jpg"
    shutil.copy(PHOTO, other)
    page = open_page()
    page.fill("#prompt", "one of a batch")
    page.fill("[name=num_frames]", "9")
    page.set_input_files("#image", [PHOTO, broken, other, PHOTO])
    page.wait_for_selector("#submit:has-text('Make 4 videos')")
    page.focus("#batch li:last-child button")
    page.keyboard.press("Enter")
    page.wait_for_selector("#submit:has-text('Make 3 videos')")
    page.wait_for_selector("#plan-lead:visible")
    known = service.ids()
    page.click("#submit")
    page.wait_for_selector("#form-error:has-text('1 of 3 photos were refused: see why beside each.')")
    page.wait_for_selector("#batch-progress:has-text('2 of 3 videos are queued.')")
    assert page.locator("#batch li").all_inner_texts() != []
    assert page.locator("#batch li").count() == 1
    assert "is not an image" in page.inner_text("#batch li:has-text('broken.jpg') .error")
    made = [job for job in service.store.page(limit=200) if job.id not in known]
    assert [(job.spec.prompt, job.spec.num_frames) for job in made] == [("one of a batch", 9)] * 2
    page.set_input_files("#image", [broken] * 101)
    page.wait_for_selector("#batch-progress:has-text('Only the first 100 of 101 photos are taken.')")
    assert page.locator("#batch li").count() == 100
    page.set_input_files("#image", other)
    page.locator("#batch").wait_for(state="hidden")
    assert page.is_hidden("#batch-progress")
    assert page.inner_text("#submit") == "Make the video"


def test_a_batch_keeps_the_settings_it_began_with_and_leaves_what_is_chosen_meanwhile(
    open_page: OpenPage, service: Service, tmp_path: Path
) -> None:
    later = tmp_path / "later.jpg"
    shutil.copy(PHOTO, later)
    page = open_page()
    page.fill("#prompt", "as it began")
    page.set_input_files("#image", [PHOTO, PHOTO])
    page.wait_for_selector("#submit:has-text('Make 2 videos')")
    held: list[Any] = []
    page.route("**/generate", lambda route: route.continue_() if held else held.append(route))
    known = service.ids()
    page.click("#submit")
    page.wait_for_selector("#batch-progress:has-text('Sending photo 1 of 2')")
    page.fill("#prompt", "changed meanwhile")
    page.set_input_files("#image", later)
    while not held:
        page.wait_for_selector("#submit:disabled")
    held[0].continue_()
    page.wait_for_selector("#batch-progress:has-text('2 of 2 videos are queued.')")
    made = [job.spec.prompt for job in service.store.page(limit=200) if job.id not in known]
    assert made == ["as it began"] * 2
    assert "later.jpg" in page.get_attribute(".drop[for=image] img", "alt")
    assert page.input_value("#prompt") == "changed meanwhile"


def test_a_photo_whose_answer_is_lost_is_sent_again_and_makes_one_video(
    open_page: OpenPage, service: Service
) -> None:
    page = open_page()
    page.fill("#prompt", "an answer is lost")
    page.set_input_files("#image", [PHOTO, PHOTO])
    page.wait_for_selector("#submit:has-text('Make 2 videos')")
    page.evaluate(LOSE_ANSWERS, 1)
    known = service.ids()
    page.click("#submit")
    page.wait_for_selector("#batch-progress:has-text('2 of 2 videos are queued.')")
    assert len(service.ids() - known) == 2
    page.set_input_files("#image", PHOTO)
    page.wait_for_selector("#submit:has-text('Make the video')")
    page.evaluate(LOSE_ANSWERS, 2)
    page.click("#submit")
    page.wait_for_selector("#form-error:visible")
    page.click("#submit")
    page.locator("#form-error").wait_for(state="hidden")
    page.wait_for_selector("#submit:enabled")
    assert len(service.ids() - known) == 3


@pytest.mark.parametrize(("colors", "width"), [("light", 1280), ("dark", 390)])
def test_nothing_of_the_history_is_inaccessible_or_cut(
    open_page: OpenPage, service: Service, colors: str, width: int
) -> None:
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="axe is not installed")
    (ended,) = service.add("W" * 200)
    while service.end() != ended:
        pass
    page = open_page(color_scheme=colors, viewport={"width": width, "height": 844})
    page.wait_for_selector(".device .band")
    page.set_input_files("#image", [PHOTO, PHOTO])
    page.locator(".pick:visible").first.check()
    page.fill("#find-q", "W")
    page.wait_for_selector("#found:has-text('found')")
    page.locator(".pick:visible").first.check()
    page.focus(".plot")
    page.keyboard.press("-")
    page.keyboard.press("+")
    page.evaluate("document.querySelectorAll('details').forEach(one => one.open = true)")
    for opened in (None, ".code:visible >> nth=0"):
        if opened:
            page.click(opened)
            page.wait_for_selector("#code-dialog[open]")
        found = axe.Axe().run(page).response["violations"]
        assert [(one["id"], one["impact"], one["nodes"][0]["html"][:200]) for one in found] == []
        assert page.evaluate("document.documentElement.scrollWidth") <= width, "it scrolls sideways"
