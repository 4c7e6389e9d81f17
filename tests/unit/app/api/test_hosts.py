"""Which names the service answers to, and whose pages may change something."""

import socket
from collections.abc import Callable
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from app.api.middleware.hosts import FORWARDED_HOSTS, OwnHosts, authority_of, origin_refusal
from app.config import ConfigError, Settings, load_settings

Clients = Callable[..., TestClient]
MACHINE = socket.gethostname().partition(".")[0]


def refused(hosts: OwnHosts, host: str, **more: object) -> bool:
    scope = {"type": "http", "headers": [(b"host", host.encode())], "server": ("10.0.0.5", 8000), **more}
    return hosts.refusal(scope) is not None


@pytest.mark.parametrize(
    "host",
    [
        *("localhost", "localhost:9000", "LOCALHOST.", "app.localhost:8000", ""),
        *("127.0.0.1:8000", "192.168.1.20", "[::1]:8000", "[2001:db8::1]", "0.0.0.0:8000", "10.0.0.5:"),
        *(socket.gethostname(), f"{MACHINE}:8000", f"{MACHINE}.local", f"{MACHINE.upper()}.LOCAL:8000"),
        *("gpu-box.lan", "GPU-BOX.lan:1", "a.example.org", "b.a.example.org:8443", "bound-name:8000"),
    ],
)
def test_own_names_and_addresses_are_answered(tmp_path: Path, host: str) -> None:
    settings = Settings(
        data_dir=tmp_path,
        host="bound-name",
        allow_public=True,
        allowed_hosts=("gpu-box.lan", "*.example.org"),
    )
    assert not refused(OwnHosts.of(settings), host)


@pytest.mark.parametrize(
    "host",
    [
        *("evil.example", "evil.example:8000", "localhost.evil.example", "evillocalhost", "127.0.0.1.nip.io"),
        *("example.org", "badexample.org", "gpu-box.lan.evil.example", f"{MACHINE}.evil.example"),
        *(
            "localhost@evil.example",
            "evil.example/localhost",
            "localhost, evil.example",
            "localhost:x",
            "[evil]",
        ),
        *("2130706433", "127.1", "[127.0.0.1", "\xe9.example", "localhost:123456", ".", "..", "::1"),
    ],
)
def test_other_names_are_refused(tmp_path: Path, host: str) -> None:
    settings = Settings(data_dir=tmp_path, allowed_hosts=("gpu-box.lan", "*.example.org"))
    assert refused(OwnHosts.of(settings), host)


def test_the_host_that_a_proxy_was_asked_for_is_checked_beside_the_one_it_asks_for(tmp_path: Path) -> None:
    hosts = OwnHosts.of(Settings(data_dir=tmp_path, allowed_hosts=("video.example.org",)))
    assert not refused(hosts, "127.0.0.1:8000", **{FORWARDED_HOSTS: ["video.example.org"]})
    assert refused(hosts, "127.0.0.1:8000", **{FORWARDED_HOSTS: ["video.example.org", "evil.example"]})
    assert refused(hosts, "evil.example", **{FORWARDED_HOSTS: ["video.example.org"]})


def test_any_name_is_answered_where_the_operator_says_so(tmp_path: Path) -> None:
    hosts = OwnHosts.of(Settings(data_dir=tmp_path, allowed_hosts=("*",)))
    assert not refused(hosts, "evil.example")


def test_a_refusal_says_which_setting_to_change(client: TestClient, caplog: pytest.LogCaptureFixture) -> None:
    for path in ("/", "/jobs", "/healthz", "/metrics", "/static/main.js", "/openapi.json"):
        answer = client.get(path, headers={"Host": "evil.example:8000"})
        assert (answer.status_code, answer.json()["code"]) == (421, "host_not_allowed")
        assert answer.json()["host"] == "evil.example:8000"
        assert answer.json()["setting"] == "FRAMEFIT_ALLOWED_HOSTS"
    assert [record.getMessage() for record in caplog.records if "host_refused" in record.getMessage()] == [
        "host_refused host=evil.example:8000 setting=FRAMEFIT_ALLOWED_HOSTS"
    ], "each name appears once"
    openai = client.get("/v1/videos", headers={"Host": "evil.example"})
    assert openai.json()["error"]["code"] == "host_not_allowed"


@pytest.mark.parametrize(
    ("host", "origin", "status"),
    [
        ("gpu-box.lan:8000", "http://gpu-box.lan:8000", 200),
        ("GPU-BOX.lan:8000", "http://gpu-box.lan:8000", 200),
        ("gpu-box.lan", "http://gpu-box.lan", 200),
        ("gpu-box.lan", "http://gpu-box.lan:80", 200),
        ("gpu-box.lan", "https://gpu-box.lan", 200),  # a proxy that speaks TLS and does not say so
        ("gpu-box.lan:443", "https://gpu-box.lan", 200),
        ("[::1]:8000", "http://[0:0::1]:8000", 200),
        ("gpu-box.lan:8000", None, 200),
        ("gpu-box.lan:8000", "null", 403),
        ("gpu-box.lan:8000", "", 403),
        ("gpu-box.lan:8000", "http://evil.example:8000", 403),
        ("gpu-box.lan:8000", "http://gpu-box.lan", 403),
        ("gpu-box.lan:8000", "http://gpu-box.lan:9000", 403),
        ("gpu-box.lan", "https://gpu-box.lan:8443", 403),
        ("gpu-box.lan:8000", "http://gpu-box.lan:8000.evil.example", 403),
        ("gpu-box.lan:8000", "chrome-extension://gpu-box.lan:8000", 403),
        ("gpu-box.lan:8000", "http://gpu-box.lan:8000, http://evil.example", 403),
        ("localhost:8000", "http://127.0.0.1:8000", 403),
    ],
)
def test_only_own_pages_may_change_something(host: str, origin: str | None, status: int) -> None:
    given = [(b"host", host.encode())] + ([] if origin is None else [(b"origin", origin.encode())])
    scope = {"type": "http", "method": "POST", "scheme": "http", "headers": given}
    refusal = origin_refusal(scope)
    assert (200 if refusal is None else refusal.status) == status
    assert refusal is None or refusal.code == "cross_site"
    assert origin_refusal({**scope, "method": "GET"}) is None, "pages of other sites may read"


def test_the_host_that_a_trusted_proxy_was_asked_for_may_be_the_pages() -> None:
    def scope(origin: bytes, *asked: str) -> dict[str, object]:
        given = [(b"host", b"127.0.0.1:8000"), (b"origin", origin)]
        return {"type": "http", "method": "POST", "scheme": "https", "headers": given, FORWARDED_HOSTS: asked}

    assert origin_refusal(scope(b"https://video.example.org")) is not None
    assert origin_refusal(scope(b"https://video.example.org", "video.example.org")) is None
    assert origin_refusal(scope(b"http://video.example.org", "video.example.org")) is not None, "without TLS"
    assert origin_refusal(scope(b"https://127.0.0.1:8000")) is None
    inner = origin_refusal(scope(b"https://127.0.0.1:8000", "video.example.org"))
    assert inner is not None, "the proxy asks for that host, not the browser"
    assert inner.data["host"] == "video.example.org"


def test_a_post_of_another_sites_page_is_refused_by_every_route(client: TestClient) -> None:
    headers = {"Origin": "http://evil.example"}
    for method, path in (
        ("POST", "/plan"),
        ("DELETE", "/jobs/x"),
        ("POST", "/log-level"),
        ("POST", "/session"),
    ):
        answer = client.request(method, path, headers=headers)
        assert (answer.status_code, answer.json()["code"]) == (403, "cross_site")
    assert client.post("/v1/videos", headers=headers).json()["error"]["code"] == "cross_site"
    assert client.post("/plan", json={}, headers={"Origin": "http://testserver"}).status_code == 200


def test_no_redirect_leads_to_the_host_of_the_request(client_of: Clients, tmp_path: Path) -> None:
    client = client_of(Settings(data_dir=tmp_path, allowed_hosts=("*",)))
    for path, to in (("/jobs/?limit=3", "/jobs?limit=3"), ("/devices/", "/devices"), ("/jobs/x/", "/jobs/x")):
        answer = client.get(path, headers={"Host": "evil.example"}, follow_redirects=False)
        assert (answer.status_code, answer.headers["location"]) == (307, to)
    assert client.get("http://testserver//evil.example/", follow_redirects=False).status_code == 404


@pytest.mark.parametrize(
    "names",
    ["http://gpu-box.lan", "gpu-box.lan:8000", "gpu-box.lan/x", "a b", "*.*", "a.*.org", "..", "user@host"],
)
def test_a_setting_that_is_no_name_stops_the_start(monkeypatch: pytest.MonkeyPatch, names: str) -> None:
    monkeypatch.setenv("FRAMEFIT_ALLOWED_HOSTS", f"good.example, {names}")
    with pytest.raises(ConfigError, match=r"FRAMEFIT_ALLOWED_HOSTS: .* is no name of a host"):
        load_settings()


def test_names_are_given_as_a_list(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FRAMEFIT_ALLOWED_HOSTS", "framefit, *.example.org,")
    assert load_settings().allowed_hosts == ("framefit", "*.example.org")


def test_a_host_has_a_name_and_a_port() -> None:
    assert authority_of("[::1]:80") == ("::1", 80)
    assert authority_of("a.b:") == ("a.b", None)
    assert authority_of("a:b") is None
