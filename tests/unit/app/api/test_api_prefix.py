"""The service under a path: what a proxy may say, how it is believed, and which links follow from it."""

import re
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from served import served

from adaptive.memory.profile import Curve, MemoryProfile
from adaptive.types import VaeTraits
from app.api import create_app
from app.config import Settings
from app.models.entries import ModelEntry

HEADER = "X-Forwarded-Prefix"
TRAITS = VaeTraits(
    family="ltx",
    vae_class="AutoencoderKLLTXVideo",
    latent_channels=128,
    spatial_ratio=32,
    temporal_ratio=8,
    first_frame_alone=True,
    exact_streaming=True,
    frames_independent=False,
)


def traced(entry: ModelEntry) -> MemoryProfile:
    return MemoryProfile(TRAITS, entry.dtype, "0", Curve((1, 5), (2e5, 1e6)), {1: Curve((1,), (2e5,))})


Serve = Callable[..., AbstractContextManager[httpx.Client]]


@pytest.fixture(scope="module")
def serve(tmp_path_factory: pytest.TempPathFactory) -> Serve:
    """Serves the API over a real socket; gives a context manager of a client."""

    @contextmanager
    def start(options: dict[str, Any] | None = None, **changes: Any) -> Iterator[httpx.Client]:
        settings = Settings(data_dir=tmp_path_factory.mktemp("data"), poll_seconds=0.02, **changes)
        app = create_app(settings, load_profile=traced)
        with (
            served(app, **(options or {})) as (host, port),
            httpx.Client(base_url=f"http://{host}:{port}", timeout=60) as http,
        ):
            yield http

    return start


@pytest.fixture(scope="module")
def http(serve: Serve) -> Iterator[httpx.Client]:
    """A client of a service that trusts its peer, as by default."""
    with serve() as client:
        yield client


def self_link(http: httpx.Client, picture: bytes, path: str = "/generate", **headers: str) -> str:
    answer = http.post(path, data={"prompt": "pan left"}, files={"image": picture}, headers=headers)
    assert answer.status_code == 202, answer.text
    job = answer.json()
    link: str = job["links"]["self"]
    assert answer.headers["location"] == link
    assert job["links"]["image"] == f"{link}/image"
    return link


def test_a_prefix_in_a_trusted_header_is_before_every_link(http: httpx.Client, picture: bytes) -> None:
    for given, prefix in (
        ("/framefit", "/framefit"),
        ("/framefit/", "/framefit"),
        ("/outer, /inner", "/outer/inner"),
        ("/a/b-c/d.e~f_g", "/a/b-c/d.e~f_g"),
        ("/jobs", "/jobs"),
        ("/v1", "/v1"),
        ("/", ""),
        ("", ""),
    ):
        link = self_link(http, picture, **{HEADER: given})
        assert re.fullmatch(rf"{prefix}/jobs/[0-9a-f]+", link), (given, link)
        stripped = link.removeprefix(prefix)
        assert http.get(stripped, headers={HEADER: given}).json()["links"]["self"] == link
        assert http.get(stripped).json()["links"]["self"] == stripped
        assert http.request("DELETE", stripped, headers={HEADER: given}).json()["links"]["self"] == link
        assert http.post(f"{stripped}/retry", headers={HEADER: given}).json()["links"]["self"] == link


def test_a_path_that_the_proxy_has_left_as_it_was_works_too(http: httpx.Client, picture: bytes) -> None:
    given = {HEADER: "/framefit"}
    link = self_link(http, picture, "/framefit/generate", **given)
    assert http.get(link, headers=given).json()["links"]["self"] == link
    assert http.get("/framefit/static/main.js", headers=given).status_code == 200
    assert http.get("/framefitting/jobs", headers=given).status_code == 404
    redirect = http.get("/framefit", headers=given)
    assert redirect.status_code == 307
    assert httpx.URL(redirect.headers["location"]).path == "/framefit/"


BAD_PREFIXES = [
    "//evil.example",
    "https://evil.example",
    "evil",
    "/a/../b",
    "/..",
    "/a b",
    "/a%2fb",
    '/"><script>',
    "/a//b",
    "/ok, //evil.example",
    "/\xe4",
]


def test_a_header_that_is_no_plain_path_is_ignored(http: httpx.Client) -> None:
    for given in BAD_PREFIXES:
        headers = [(HEADER.encode(), given.encode("latin-1"))]
        page = http.get("/", headers=headers)
        assert (given, page.status_code) == (given, 200)
        assert "<base" not in page.text
        assert "servers" not in http.get("/openapi.json", headers=headers).json()


def posted_by_the_page(http: httpx.Client, scheme: str, headers: dict[str, str]) -> int:
    """The status of a request from a page of the service's own host under that scheme."""
    host = f"{http.base_url.host}:{http.base_url.port}"
    return http.post("/plan", json={}, headers={**headers, "Origin": f"{scheme}://{host}"}).status_code


def test_the_header_of_an_address_that_is_not_trusted_is_ignored(serve: Serve, picture: bytes) -> None:
    said = {HEADER: "/framefit", "X-Forwarded-Proto": "https"}
    with serve({"forwarded_allow_ips": "192.0.2.1"}) as http:
        assert self_link(http, picture, **said).startswith("/jobs/")
        assert "<base" not in http.get("/", headers=said).text
        assert posted_by_the_page(http, "http", said) == 200
    with serve({"forwarded_allow_ips": "192.0.2.1, 127.0.0.0/8"}) as http:
        forged = {
            **said,
            "X-Forwarded-For": "203.0.113.9",
        }  # the client's own address is no longer the peer's
        assert self_link(http, picture, **forged).startswith("/framefit/jobs/")
        assert posted_by_the_page(http, "https", said) == 200
        assert posted_by_the_page(http, "http", said) == 403, "a page without TLS is another site"


def test_the_setting_is_for_proxies_that_say_nothing(serve: Serve, picture: bytes) -> None:
    with serve(root_path="/framefit") as http:
        for path in ("/generate", "/framefit/generate"):
            assert self_link(http, picture, path).startswith("/framefit/jobs/")
        assert self_link(http, picture, **{HEADER: "/other"}).startswith("/other/jobs/")
        assert http.get("/healthz").status_code == http.get("/framefit/healthz").status_code == 200
        assert http.get("/framefit/openapi.json").json()["servers"] == [{"url": "/framefit"}]
        assert http.get("/framefit/v1/videos/x").json()["error"]["code"] == "no_such_job"


def test_the_pages_addresses_are_relative_to_its_path(http: httpx.Client) -> None:
    page = http.get("/", headers={HEADER: "/framefit"})
    assert '<base href="/framefit/">' in page.text
    assert "base-uri 'self'" in page.headers["content-security-policy"]
    assert page.headers["content-type"] == "text/html; charset=utf-8"
    static = Path(create_app.__code__.co_filename).with_name("static")
    for file in [static / "index.html", *static.glob("*.js"), static / "style.css"]:
        text = file.read_text()
        absolute = re.findall(
            r"""(?:href|src|action)=["']/|from ["']/|import\(["']/|url\(/|fetch\(["'`]/""", text
        )
        assert absolute == [], file.name
    api = (static / "api.js").read_text()
    assert api.count("fetch(") == api.count("fetch(route(") == 1
    assert api.count("EventSource(") == api.count("EventSource(route(") == 1


def test_a_cookie_is_kept_to_the_path(serve: Serve) -> None:
    key = "ff_a-key-under-a-path"
    with serve(api_keys=(key,)) as http:
        said = {HEADER: "/framefit"}
        assert (
            "Path=/framefit;" in http.post("/session", json={"key": key}, headers=said).headers["set-cookie"]
        )
        assert "Path=/framefit;" in http.request("DELETE", "/session", headers=said).headers["set-cookie"]
        assert "Path=/;" in http.post("/session", json={"key": key}).headers["set-cookie"]
        http.cookies.clear()
        both = {"Cookie": f"framefit_key={key}; framefit_key=of-another-service"}
        assert http.get("/jobs", headers=both).status_code == 200


def test_a_proxy_passes_the_host_on_or_tells_it(serve: Serve) -> None:
    origin = {"Origin": "https://video.example.org", "X-Forwarded-Proto": "https"}
    told = {"X-Forwarded-Host": "video.example.org"}
    with serve(allowed_hosts=("video.example.org",)) as http:
        for headers in ({"Host": "video.example.org"}, told, {"Host": "video.example.org", **told}):
            assert http.post("/plan", json={}, headers={**origin, **headers}).status_code == 200
        refusal = http.post("/plan", json={}, headers=origin)
        assert (refusal.status_code, refusal.json()["code"]) == (403, "cross_site")
        assert "X-Forwarded-Host" in refusal.json()["detail"]
        two = {"X-Forwarded-Host": "video.example.org, rebound.example"}
        assert http.get("/jobs", headers=two).json()["host"] == "rebound.example"
    with serve() as http:
        assert http.get("/jobs", headers=told).json()["code"] == "host_not_allowed"
    with serve({"forwarded_allow_ips": "192.0.2.1"}, allowed_hosts=("video.example.org",)) as http:
        assert http.post("/plan", json={}, headers={**origin, **told}).status_code == 403, (
            "not a proxy's word"
        )
