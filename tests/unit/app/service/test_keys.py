"""API keys: known by their hashes, each with limits of its own, each blind to the others' jobs."""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from served import served
from starlette.testclient import TestClient

from app.api import create_app
from app.config import ConfigError, Settings, load_settings
from app.jobs import JobStatus
from app.service.keys import digest_of, format_hash, load_keys, new_key
from app.store import JobStore

ADA, BOB, EVE = new_key(), new_key(), new_key()


def key_file(folder: Path, text: str) -> Path:
    path = folder / "keys.toml"
    path.write_text(text)
    return path


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    text = f"""
    [keys.ada]
    hash = "{format_hash(ADA)}"
    max_queued = 2
    max_pixels = 2_000_000
    [keys.bob]
    hash = "{format_hash(BOB)}"
    admin = true
    [keys.eve]
    hash = "{format_hash(EVE)}"
    """
    return Settings(data_dir=tmp_path, keys_file=key_file(tmp_path, text), poll_seconds=0.02)


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


def hand_in(client: Any, key: str, picture: bytes, **fields: Any) -> Any:
    files = {"image": ("a.jpg", picture)}
    return client.post(
        "/generate", data={"prompt": "x", "num_frames": "9", **fields}, files=files, headers=bearer(key)
    )


def test_a_hash_in_the_settings_lets_its_key_in(client_of: Callable[..., TestClient], tmp_path: Path) -> None:
    client = client_of(Settings(data_dir=tmp_path, api_keys=(format_hash(ADA),)))
    assert client.get("/jobs", headers=bearer(ADA)).status_code == 200
    assert client.get("/jobs", headers=bearer(BOB)).status_code == 401
    assert client.get("/jobs", headers=bearer(format_hash(ADA))).status_code == 401, "the hash is no key"


def test_a_key_owns_the_same_jobs_once_it_is_replaced_by_its_hash() -> None:
    plain, hashed = (load_keys(Settings(api_keys=(form,))).find(ADA) for form in (ADA, format_hash(ADA)))
    assert plain == hashed
    assert plain is not None
    assert plain.owner not in ADA


@pytest.mark.parametrize("keys", ["sha256:abc", "sha256:" + "X" * 64])
def test_what_only_looks_like_a_hash_stops_the_start(keys: str) -> None:
    with pytest.raises(ConfigError, match="FRAMEFIT_API_KEYS"):
        load_settings(api_keys=keys)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", r"\[keys.NAME\]"),
        ("[keys.a]\nhash = 'secret-secret-secret'", r"keys\.a\.hash"),
        (f"[keys.a]\nhash = '{format_hash(ADA)}'\nmax_queued = 0", r"keys\.a\.max_queued"),
        (f"[keys.a]\nhash = '{format_hash(ADA)}'\nmax_queue = 5", r"keys\.a\.max_queue"),
        ("[[[", "keys.toml"),
    ],
)
def test_an_invalid_key_file_is_reported_without_quoting_it(tmp_path: Path, text: str, told: str) -> None:
    with pytest.raises(ConfigError, match=told) as refusal:
        load_keys(Settings(keys_file=key_file(tmp_path, text)))
    assert "secret" not in str(refusal.value)


def test_keys_are_compared_by_digest_and_all_of_them_every_time(monkeypatch: pytest.MonkeyPatch) -> None:
    compared: list[tuple[bytes, bytes]] = []

    def compare(one: bytes, other: bytes) -> bool:
        compared.append((one, other))
        return one == other

    ring = load_keys(Settings(api_keys=(ADA, BOB, EVE)))
    monkeypatch.setattr("app.service.keys.hmac.compare_digest", compare)
    for key in (ADA, EVE, "unknown"):
        compared.clear()
        ring.find(key)
        assert [one for one, _ in compared] == [digest_of(key)] * 3


def test_a_key_has_its_own_limits_on_queue_and_pixels(client: TestClient, picture: bytes) -> None:
    too_large = hand_in(client, ADA, picture, model="tiny", width="512", height="512", num_frames="9")
    assert (too_large.status_code, too_large.json()["code"]) == (422, "over_key_limit")
    assert (too_large.json()["pixels"], too_large.json()["limit"]) == (512 * 512 * 9, 2_000_000)
    assert client.post("/plan", json={"width": 512, "height": 512}, headers=bearer(ADA)).status_code == 422
    for _ in range(2):
        assert hand_in(client, ADA, picture).status_code == 202
    full = hand_in(client, ADA, picture)
    assert (full.status_code, full.json()["code"], full.json()["limit"]) == (429, "queue_full", 2)
    for _ in range(3):
        assert hand_in(client, BOB, picture, model="tiny", width="512", height="512").status_code == 202


def test_only_an_administrators_key_pauses_a_device(client: TestClient, app_store: JobStore) -> None:
    app_store.register_worker("w", {"name": "cpu"})
    refused = client.post("/devices/cpu/pause", headers=bearer(ADA))
    assert (refused.status_code, refused.json()["code"]) == (403, "not_allowed")
    assert client.post("/devices/cpu/pause", headers=bearer(BOB)).status_code == 204
    assert client.post("/log-level?level=info", headers=bearer(ADA)).status_code == 403
    may = [client.get("/session", headers=bearer(key)).json()["admin"] for key in (ADA, BOB)]
    assert may == [False, True]


OPEN_TO_ALL = {*(("get", f"/{name}") for name in ("healthz", "readyz", "metrics"))} | {
    (method, "/session") for method in ("post", "delete")
}


def routes(client: TestClient) -> list[tuple[str, str]]:
    paths = client.get("/openapi.json").json()["paths"]
    return [(method, path) for path, operations in paths.items() for method in operations]


def test_no_route_of_a_job_shows_it_to_another_key(client: TestClient, picture: bytes) -> None:
    job = hand_in(client, ADA, picture).json()
    seen = 0
    for method, path in routes(client):
        if "{job_id}" in path or "{video_id}" in path:
            filled = path.format(job_id=job["id"], video_id=job["id"], number=0, which="first")
            answer = client.request(method, filled, headers=bearer(EVE))
            assert answer.status_code == 404, (method, path)
            seen += 1
    assert seen >= 10
    assert client.get(f"/jobs/{job['id']}", headers=bearer(ADA)).json()["status"] == JobStatus.QUEUED
    for path, name in (("/jobs", "jobs"), ("/v1/videos", "data")):
        assert client.get(path, headers=bearer(EVE)).json()[name] == []


def test_every_other_route_asks_for_a_key(client: TestClient) -> None:
    for method, path in routes(client):
        if (method, path) not in OPEN_TO_ALL:
            filled = path.format(job_id="x", video_id="x", name="x", number=0, which="first")
            assert client.request(method, filled).status_code == 401, (method, path)


def test_a_device_does_not_tell_which_job_of_another_key_it_runs(
    client: TestClient, app_store: JobStore, picture: bytes
) -> None:
    job = hand_in(client, ADA, picture).json()
    app_store.heartbeat("w", device={"name": "cpu"}, job_id=job["id"], token=0)
    for key, shown in ((ADA, job["id"]), (EVE, None)):
        assert client.get("/devices", headers=bearer(key)).json()["devices"][0]["job_id"] == shown


def test_the_stream_of_all_jobs_is_one_of_the_callers_jobs(
    settings: Settings, load_profile: Any, picture: bytes
) -> None:
    with (
        served(create_app(settings, load_profile=load_profile)) as (host, port),
        httpx.Client(base_url=f"http://{host}:{port}", timeout=120) as client,
        client.stream("GET", "/events", headers=bearer(EVE)) as stream,
    ):
        theirs = hand_in(client, ADA, picture).json()["id"]
        mine = hand_in(client, EVE, picture).json()["id"]
        seen = ""
        for line in stream.iter_lines():
            seen += line
            if mine in seen:
                break
        assert theirs not in seen


def test_no_key_reaches_the_log(
    settings: Settings, load_profile: Any, picture: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    wrong = new_key()
    with (
        served(create_app(settings, load_profile=load_profile), access_log=True) as (host, port),
        httpx.Client(base_url=f"http://{host}:{port}", timeout=120) as client,
    ):
        assert hand_in(client, ADA, picture).status_code == 202
        for key in (ADA, wrong):
            client.get("/jobs", headers={"X-API-Key": key})
            client.get("/jobs", headers={"Cookie": f"framefit_key={key}"})
            client.post("/session", json={"key": key})
            client.post("/session", json={"key": [key]})
            client.post("/session", content=key)
    # The client of this test, which shares the process, tells its own requests.
    ours = [record for record in caplog.records if not record.name.startswith("http")]
    said = "\n".join(record.getMessage() for record in ours)
    assert "/session" in said, "the access log is on"
    assert ADA not in said
    assert wrong not in said
