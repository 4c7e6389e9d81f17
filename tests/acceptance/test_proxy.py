"""The service behind nginx: under a path, with TLS, configured as the documentation says."""

import ssl
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import httpx
import nginx_server
import pytest
from browser import CHROMIUM, api_alone, chromium
from waiting import wait_for

from app.config import Settings
from app.jobs import Stage
from app.store import open_store

PHOTO = Path(__file__).parents[2] / "app" / "assets" / "demo.jpg"
SAYS_THE_PATH = "proxy_set_header X-Forwarded-Prefix /framefit;"
KEY = "ff_a-key-behind-the-proxy"

pytestmark = pytest.mark.skipif(nginx_server.MISSING is not None, reason=str(nginx_server.MISSING))


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    # The only device reports once: it must count as alive however long the tests take.
    return Settings(
        data_dir=tmp_path_factory.mktemp("service") / "d?x=1 %41", poll_seconds=0.05, heartbeat_seconds=600
    )


@pytest.fixture(scope="module")
def proxied(settings: Settings, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, str]]:
    """The service's own address, and that under a path with TLS."""
    folder = tmp_path_factory.mktemp("nginx")
    with api_alone(settings) as own, nginx_server.nginx(folder, own) as outside:
        yield own, f"{outside}/framefit"


@pytest.fixture(scope="module")
def http(proxied: tuple[str, str]) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=proxied[1], verify=_unverified(), timeout=60) as client:
        yield client


def _unverified() -> ssl.SSLContext:
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


def post_job(http: httpx.Client, prompt: str) -> dict[str, Any]:
    fields = {"prompt": prompt, "model": "tiny"}

    def accepted() -> httpx.Response | None:
        answer = http.post("/generate", data=fields, files={"image": PHOTO.read_bytes()})
        return None if answer.status_code == 503 else answer

    answer = wait_for(accepted, 120)
    assert answer.status_code == 202, answer.text
    job: dict[str, Any] = answer.json()
    assert answer.headers["location"] == job["links"]["self"]
    return job


def test_every_link_of_a_job_leads_through_the_proxy(http: httpx.Client) -> None:
    origin = http.base_url.copy_with(path="/")
    job = post_job(http, "linked")
    links = [job["links"]["self"], job["links"]["image"], job["links"]["events"]]
    assert all(link.startswith("/framefit/jobs/") for link in links)
    assert http.get(origin.join(job["links"]["image"])).content == PHOTO.read_bytes()
    assert http.get(origin.join(job["links"]["self"])).json()["links"] == job["links"]
    listed = http.get("/jobs").json()["jobs"]
    assert job["links"] in [each["links"] for each in listed]
    document = http.get("/openapi.json").json()
    assert document["servers"] == [{"url": "/framefit"}]
    assert {"/generate", "/jobs/{job_id}"} <= document["paths"].keys()


def test_redirects_stay_where_they_are_asked_for(http: httpx.Client) -> None:
    origin = str(http.base_url.copy_with(path="/")).rstrip("/")
    for path, to in (("/jobs/", "/framefit/jobs"), ("/devices/", "/framefit/devices")):
        answer = http.get(path)
        assert answer.status_code in (301, 307)
        assert str(answer.url.join(answer.headers["location"])) == f"{origin}{to}"
        assert answer.headers["location"] == to, "it names no host"
    answer = http.get(f"{origin}/framefit")
    assert (answer.status_code, answer.headers["location"]) == (301, f"{origin}/framefit/")
    assert http.get(f"{origin}/jobs").status_code == 404, "nothing is served beside the path"


def test_the_service_itself_still_answers_without_the_path(
    proxied: tuple[str, str], http: httpx.Client
) -> None:
    job = post_job(http, "both ways")
    own = httpx.get(f"{proxied[0]}/jobs/{job['id']}", timeout=60).json()
    assert own["links"]["self"] == f"/jobs/{job['id']}"
    assert "servers" not in httpx.get(f"{proxied[0]}/openapi.json", timeout=60).json()


def test_errors_in_openais_form_are_so_under_a_path_too(http: httpx.Client) -> None:
    assert http.get("/v1/videos/nonesuch").json()["error"]["code"] == "no_such_job"
    assert http.get("/jobs/nonesuch").json()["code"] == "no_such_job"


@pytest.mark.parametrize("buffering", ["proxy_buffering off;", "proxy_buffering on;"])
def test_an_event_arrives_while_the_stream_is_open(
    buffering: str, proxied: tuple[str, str], settings: Settings, tmp_path: Path
) -> None:
    changes = {"proxy_buffering off;": buffering}
    with (
        nginx_server.nginx(tmp_path / "nginx", proxied[0], changes) as outside,
        httpx.Client(base_url=f"{outside}/framefit", verify=_unverified(), timeout=60) as http,
        closing(open_store(settings)) as store,
    ):
        job = post_job(http, "watched")
        with http.stream("GET", f"/jobs/{job['id']}/events") as stream:
            assert stream.headers["content-type"].startswith("text/event-stream")
            lines = stream.iter_lines()
            assert next(line for line in lines if line.startswith("event:")) == "event: accepted"
            # Only now: the next event must not wait for the end of the stream.
            assert store.cancel(job["id"])
            assert next(line for line in lines if line.startswith("event:")) == "event: canceled"


def test_a_body_larger_than_nginxs_own_limit_passes(http: httpx.Client) -> None:
    answer = http.post("/generate", data={"prompt": "x"}, files={"image": bytes(3_000_000)})
    assert (answer.status_code, answer.json()["code"]) == (422, "not_an_image")


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium is installed")
def test_the_page_works_under_a_path_with_tls(
    proxied: tuple[str, str], settings: Settings, http: httpx.Client, tmp_path: Path
) -> None:
    origin, addresses, complaints = proxied[1].removesuffix("/framefit"), [], []
    with (
        chromium() as browser,
        closing(browser.new_context(ignore_https_errors=True)) as context,
        closing(open_store(settings)) as store,
    ):
        page = context.new_page()
        page.on("request", lambda sent: addresses.append(sent.url))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("response", lambda got: complaints.append(got.url) if got.status == 404 else None)
        page.goto(f"{origin}/framefit")  # nginx adds the slash
        page.wait_for_selector(".rung.chosen", timeout=120_000)
        page.set_input_files("#image", PHOTO)
        page.fill("#prompt", "seen from outside")
        page.click("#submit")
        card = page.locator(".job:has-text('seen from outside')")
        card.wait_for(timeout=60_000)
        shown = card.locator(".media img")
        shown.wait_for(timeout=60_000)
        assert shown.evaluate("async image => { await image.decode(); return image.naturalWidth; }") == 512
        found = http.get("/jobs").json()["jobs"]
        job = next(one for one in found if one["request"]["prompt"] == "seen from outside")
        while claim := store.claim(
            "w", models=None, loaded_model=None, capacity_bytes=None, lease_seconds=600
        ):
            if claim.job.id == job["id"]:
                break
        assert claim is not None
        assert store.progress(
            claim.job.id, claim.token, stage=Stage.DENOISING, progress=0.5, kind="stage", data={}
        )
        page.wait_for_selector(".job[data-status=running] .what:has-text('Denoising')", timeout=60_000)
        with nginx_server.nginx(tmp_path, proxied[0], {SAYS_THE_PATH: ""}) as silent:
            page.goto(f"{silent}/framefit/")
            image = page.locator(".job:has-text('seen from outside') .media img")
            image.wait_for(timeout=60_000)
            assert (
                image.evaluate("async image => { await image.decode(); return image.naturalWidth; }") == 512
            )
            page.goto("about:blank")
        assert complaints == []
    addresses = [one.replace(silent, origin) for one in addresses if one != "about:blank"]
    outside = [one for one in addresses if not one.startswith((f"{origin}/framefit", "blob:", "data:"))]
    assert outside == []
    assert any(one.endswith("/framefit/events") for one in addresses)


def test_a_key_is_kept_in_a_cookie_of_the_path(tmp_path: Path) -> None:
    settings = Settings(data_dir=tmp_path / "data", api_keys=(KEY,))
    with (
        api_alone(settings) as own,
        nginx_server.nginx(tmp_path / "nginx", own) as outside,
        httpx.Client(base_url=f"{outside}/framefit", verify=_unverified(), timeout=60) as http,
    ):
        assert http.get("/jobs").status_code == 401
        answer = http.post("/session", json={"key": KEY})
        cookie = answer.headers["set-cookie"].lower()
        assert "path=/framefit;" in cookie
        assert "secure" in cookie
        assert http.get("/jobs").status_code == 200
        beside = httpx.Cookies({"framefit_key": "a key of another service"})
        both = f"framefit_key={KEY}; framefit_key={beside['framefit_key']}"
        given = {"Cookie": both}
        assert httpx.get(f"{own}/jobs", headers=given, timeout=60).status_code == 200, (
            "the cookie of the longest path is first"
        )
        http.delete("/session")
        assert http.get("/jobs").status_code == 401
