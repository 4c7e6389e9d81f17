"""The API's reference page in a real browser, and clients generated from the OpenAPI document."""

import importlib
import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import httpx
import nginx_server
import pytest
from browser import CHROMIUM, api_alone, chromium

from app.config import Settings
from app.jobs import JobSpec, JobStatus
from app.service.keys import new_key
from app.store import Submission, open_store

KEY = new_key()
# It has an environment of its own, which `make dev` makes.
GENERATOR = shutil.which("openapi-python-client", path=Path(sys.prefix, "openapi-python-client", "bin"))
PHOTO = Path(__file__).parents[2] / "app" / "assets" / "demo.jpg"
# Pages tell of what their policy stopped by an event.
LISTEN = """
window.stopped = [];
document.addEventListener("securitypolicyviolation", event =>
    window.stopped.push(`${event.effectiveDirective} ${event.blockedURI} ${event.sample}`));
"""


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    return Settings(data_dir=tmp_path_factory.mktemp("reference"), api_keys=(KEY,), poll_seconds=0.05)


@pytest.fixture(scope="module")
def own(settings: Settings) -> Iterator[str]:
    with api_alone(settings) as address:
        yield address


def look_at_the_reference(browser: Any, root: str) -> None:
    """Open the page, count its operations and try one with a key."""
    asked: list[str] = []
    complaints: list[str] = []
    with closing(browser.new_context(ignore_https_errors=True)) as context:
        context.add_init_script(LISTEN)
        page = context.new_page()
        page.on("request", lambda sent: asked.append(sent.url))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("response", lambda got: complaints.append(got.url) if got.status in (404, 500) else None)
        page.goto(f"{root}/docs")
        page.wait_for_selector(".opblock", timeout=120_000)
        assert page.locator(".opblock").count() >= 30
        assert page.locator(".opblock-summary-path", has_text="/generate/batch").count() == 1
        page.click(".authorize")
        page.locator("input[aria-label='auth-bearer-value']").fill(KEY)
        page.locator(".auth-container", has_text="bearer").locator("button.authorize").click()
        page.click(".btn-done")
        page.click("#operations-jobs-list_jobs .opblock-summary-control")
        page.click("#operations-jobs-list_jobs .try-out__btn")
        with page.expect_response(lambda got: "/jobs?" in got.url, timeout=60_000) as answered:
            page.click("#operations-jobs-list_jobs .execute")
        assert answered.value.status == 200
        assert answered.value.url.startswith(f"{root}/jobs?")
        page.wait_for_selector("#operations-jobs-list_jobs .live-responses-table .response", timeout=60_000)
        assert page.evaluate("window.stopped") == []
    assert complaints == []
    assert [url for url in asked if not url.startswith((f"{root}/", "data:"))] == []


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium is installed")
@pytest.mark.skipif(nginx_server.MISSING is not None, reason=str(nginx_server.MISSING))
def test_the_reference_works_under_a_path_and_fetches_nothing_from_elsewhere(
    own: str, tmp_path: Path
) -> None:
    with nginx_server.nginx(tmp_path, own) as outside, chromium() as browser:
        look_at_the_reference(browser, f"{outside}/framefit")


def test_the_reference_has_a_strict_policy_of_its_own(own: str) -> None:
    page = httpx.get(f"{own}/docs", timeout=60)
    policy = page.headers["content-security-policy"]
    assert "unsafe" not in policy
    assert "script-src 'self'" in policy
    assert "<script>" not in page.text
    assert '<base href="/">' in page.text
    assert '<a href="docs">' in httpx.get(f"{own}/", timeout=60).text
    assert httpx.get(f"{own}/docs/swagger-ui.css", timeout=60).headers["content-type"].startswith("text/css")
    for name in ("index.html", "oauth2-redirect.html", "..%2fpyproject.toml", "swagger-ui.js"):
        assert httpx.get(f"{own}/docs/{name}", timeout=60).status_code == 404, name


def spec() -> JobSpec:
    fields = {"prompt": "x", "model": "tiny", "width": 64, "height": 64, "num_frames": 9, "fps": 8}
    return JobSpec.model_validate({**fields, "seed": 1, "num_inference_steps": 2, "guidance_scale": 1.0})


@pytest.mark.skipif(GENERATOR is None, reason="openapi-python-client is not installed")
def test_a_python_client_is_generated_without_a_warning_and_reads_a_real_job(
    own: str, settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    document = tmp_path / "openapi.json"
    document.write_bytes(httpx.get(f"{own}/openapi.json", timeout=60).content)
    config = tmp_path / "config.yml"
    config.write_text("post_hooks: []\n")
    target = tmp_path / "framefit_api"
    options = ["--config", str(config), "--output-path", str(target), "--meta=none", "--fail-on-warning"]
    done = subprocess.run(
        [str(GENERATOR), "generate", "--path", str(document), *options],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    monkeypatch.syspath_prepend(tmp_path)
    client_class = importlib.import_module("framefit_api").AuthenticatedClient
    functions = {
        name: importlib.import_module(f"framefit_api.api.jobs.{name}")
        for name in ("get_job", "list_jobs", "get_image")
    }
    with closing(open_store(settings)) as store:
        plan = {"fits_now": True, "reason": "fastest_that_fits", "strategy": "chunked", "tiles": None}
        plan["tiles"] = {"rows": 1, "columns": 1}
        job = store.submit(Submission(spec(), PHOTO.read_bytes(), "f", plan=plan, owner=owner()))[0]
        claim = store.claim("w")
        assert claim is not None
        store.finish(
            job.id,
            claim.token,
            status=JobStatus.SUCCEEDED,
            decode={"strategy": "chunked", "chunks": [2, 1], "exact": True, "seam_score": None},
            result={"frames": 9, "width": 64, "fps": "24000/1001", "audio": None},
        )
    with client_class(base_url=own, token=KEY) as client:
        read = functions["get_job"].sync(job.id, client=client)
        assert (str(read.status), read.model) == ("succeeded", "tiny")
        assert (read.plan.strategy.value, read.plan.tiles.rows) == ("chunked", 1)
        assert (read.decode.chunks, read.decode.seam_score) == ([2, 1], None)
        assert (read.result.frames, read.result.fps, read.denoise) == (9, "24000/1001", None)
        assert read.created_at.tzinfo is not None
        listed = functions["list_jobs"].sync(client=client)
        assert [each.id for each in listed.jobs] == [job.id]
        assert functions["get_image"].sync_detailed(job.id, client=client).content == PHOTO.read_bytes()
        missing = functions["get_job"].sync("nonesuch", client=client)
        assert missing.code == "no_such_job"
    for name in [name for name in sys.modules if name.startswith("framefit_api")]:
        del sys.modules[name]


def owner() -> str:
    from app.service.keys import digest_of

    return digest_of(KEY).hex()[:32]


def test_the_document_of_the_reference_is_one_of_version_3_0(own: str) -> None:
    newest, older = (
        httpx.get(f"{own}{path}", timeout=60).json() for path in ("/openapi.json", "/docs/openapi.json")
    )
    assert (newest["openapi"], older["openapi"]) == ("3.1.0", "3.0.3")
    assert newest["paths"].keys() == older["paths"].keys()
    text = json.dumps(older)
    assert '"type": "null"' not in text
