"""Pages of other sites in a real Chromium: by a rebound name, and against a name of the local network.

The browser resolves the foreign names to this machine. The foreign pages themselves are given to it by the
test, under the address that an attacker's server would have.
"""

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import httpx
import pytest
from browser import CHROMIUM, api_alone, chromium
from waiting import wait_for

from app.config import Settings
from app.store import open_store

PHOTO = Path(__file__).parents[2] / "app" / "assets" / "demo.jpg"
REBOUND, FOREIGN, LOCAL = "rebound.example", "foreign.example", "gpu-box.lan"
HOSTS = ", ".join(f"MAP {name} 127.0.0.1" for name in (REBOUND, FOREIGN, LOCAL))
# Chromium's own check of pages that reach into a local network: other browsers have none, and a page of that
# network passes it.
NO_CHECK = "LocalNetworkAccessChecks"
POST_A_JOB = """
    async (service) => {
        const form = new FormData();
        form.append("prompt", "posted by a foreign page");
        form.append("image", new Blob([Uint8Array.from(atob(PHOTO), one => one.charCodeAt(0))]), "photo.jpg");
        const send = (path, body) => fetch(service + path, { method: "POST", mode: "no-cors", body });
        const answers = [await send("/generate", form), await send("/log-level?level=debug")];
        return answers.map(answer => answer.type);
    }
"""

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no chromium is installed")


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    # The only device reports once: it must count as alive however long the tests take.
    return Settings(
        data_dir=tmp_path_factory.mktemp("service"), allowed_hosts=(LOCAL,), heartbeat_seconds=600
    )


@pytest.fixture(scope="module")
def service(settings: Settings) -> Iterator[str]:
    """The port of the service, which holds one job with a photo."""
    with api_alone(settings) as own, httpx.Client(base_url=own, timeout=60) as http:

        def accepted() -> bool:
            fields = {"prompt": "a secret", "model": "tiny"}
            answer = http.post("/generate", data=fields, files={"image": PHOTO.read_bytes()})
            return answer.status_code == 202

        wait_for(accepted, 120)
        yield own.rsplit(":", 1)[1]


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium(f"--host-resolver-rules={HOSTS}", f"--disable-features={NO_CHECK}") as running:
        yield running


@pytest.fixture
def page_at(browser: Any) -> Iterator[Any]:
    """Opens an empty page under an address that only the test serves."""
    with closing(browser.new_context()) as context:

        def open_page(address: str) -> Any:
            page = context.new_page()
            page.route(address, lambda asked: asked.fulfill(content_type="text/html", body="<p>hello</p>"))
            page.goto(address)
            return page

        yield open_page


def prompts(settings: Settings) -> list[str]:
    with closing(open_store(settings)) as store:
        return [job.spec.prompt for job in store.page(limit=100)]


def log_level(port: str) -> str:
    level: str = httpx.get(f"http://127.0.0.1:{port}/log-level", timeout=60).json()["level"]
    return level


def with_photo(script: str) -> str:
    import base64

    return script.replace("PHOTO", repr(base64.b64encode(PHOTO.read_bytes()).decode()))


def test_a_page_under_a_rebound_name_reads_neither_jobs_nor_photos_and_changes_nothing(
    service: str, settings: Settings, page_at: Any
) -> None:
    with closing(open_store(settings)) as store:
        (job,) = store.page(limit=1)
    page = page_at(f"http://{REBOUND}:{service}/bait")
    read = "async (path) => { const got = await fetch(path); return [got.status, await got.text()]; }"
    for path in (
        "/jobs",
        f"/jobs/{job.id}",
        f"/jobs/{job.id}/image",
        "/jobs/",
        "/devices",
        "/static/main.js",
    ):
        status, text = page.evaluate(read, path)
        assert status == 421, path
        assert "FRAMEFIT_ALLOWED_HOSTS" in text
        assert "secret" not in text
    page.evaluate(with_photo(POST_A_JOB), "")
    assert "posted by a foreign page" not in prompts(settings)
    assert log_level(service) == "info"


def test_a_foreign_page_posts_nothing_to_a_plain_name_of_the_local_network(
    service: str, settings: Settings, page_at: Any
) -> None:
    target = f"http://{LOCAL}:{service}"
    page = page_at(f"http://{FOREIGN}:1{service[1:]}/bait")
    assert page.evaluate(with_photo(POST_A_JOB), target) == ["opaque", "opaque"]
    with page.expect_navigation():  # a form needs no script, and its answer replaces the page
        page.evaluate(
            """(target) => {
                const form = document.createElement("form");
                Object.assign(form, { method: "post", action: `${target}/log-level?level=debug` });
                document.body.append(form);
                form.submit();
            }""",
            target,
        )
    assert '"code": "cross_site"' in page.content()
    framed = page_at(f"http://{FOREIGN}:1{service[1:]}/bait")
    framed.evaluate(
        """(target) => new Promise(done => {
            const frame = document.createElement("iframe");
            frame.sandbox = "allow-scripts";  // its origin is null
            frame.srcdoc = `<script>
                fetch("${target}/log-level?level=debug", { method: "POST", mode: "no-cors" })
                    .finally(() => parent.postMessage("sent", "*"))<` + `/script>`;
            addEventListener("message", done);
            document.body.append(frame);
        })""",
        target,
    )
    assert "posted by a foreign page" not in prompts(settings)
    assert log_level(service) == "info"


def test_the_services_own_page_works_under_a_name_of_the_local_network(
    service: str, settings: Settings, browser: Any
) -> None:
    with closing(browser.new_context()) as context:
        page = context.new_page()
        page.goto(f"http://{LOCAL}:{service}/?from=a-bookmark")
        page.wait_for_selector(".rung.chosen", timeout=120_000)
        page.set_input_files("#image", PHOTO)
        page.fill("#prompt", "posted by the own page")
        page.click("#submit")
        page.locator(".job:has-text('posted by the own page')").wait_for(timeout=60_000)
    assert "posted by the own page" in prompts(settings)
