"""Routes about the service, its headers, its keys, and what it must not load."""

import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from starlette.testclient import TestClient

from app import api
from app.config import Settings
from app.store import JobStore

ROOT = Path(__file__).parents[4]


def test_readiness_follows_the_workers(client: TestClient, app_store: JobStore) -> None:
    assert client.get("/readyz").status_code == 503
    app_store.register_worker("w", {"name": "cpu", "models": ["tiny"]})
    ready = client.get("/readyz")
    assert ready.status_code == 200
    assert ready.json()["devices"] == [{"name": "cpu", "kind": "", "state": "active", "loaded_model": None}]
    offered = ready.json()["models"]
    assert [name for name, is_offered in offered.items() if is_offered] == ["tiny"]
    assert {"photo-pan", "ltx-video", "dynamicrafter-512"} < offered.keys()


def test_models_tell_their_rules_and_what_is_noise(client: TestClient) -> None:
    models = {model["name"]: model for model in client.get("/models").json()["models"]}
    assert models["photo-pan"]["is_default"]
    assert not models["tiny"]["is_default"]
    assert "noise" in models["tiny"]["notice"]
    assert (models["ltx-video"]["frame_rule"], models["ltx-video"]["size_multiple"]) == ("8k+1", 32)
    assert models["ltx-video"]["source"] == "Lightricks/LTX-Video"


def test_devices_show_workers_and_the_driver(client: TestClient, app_store: JobStore) -> None:
    app_store.register_worker("w", {"name": "cpu", "free_bytes": 5})
    body = client.get("/devices").json()
    assert [(d["name"], d["free_bytes"], d["worker_state"]) for d in body["devices"]] == [
        ("cpu", 5, "active")
    ]
    assert body["driver_state"]
    assert client.post("/devices/cpu/pause").status_code == 204
    assert client.get("/devices").json()["devices"][0]["worker_state"] == "paused"
    assert client.post("/devices/cpu/resume").status_code == 204
    assert client.post("/devices/nonesuch/pause").json()["code"] == "no_such_device"


def test_a_device_that_several_hosts_have_is_paused_by_its_workers_id(
    client: TestClient, app_store: JobStore
) -> None:
    for worker in ("a/cuda:0/0000000a", "b/cuda:0/0000000b"):
        app_store.register_worker(worker, {"name": "cuda:0"})
    refusal = client.post("/devices/cuda:0/pause")
    assert (refusal.status_code, refusal.json()["code"]) == (409, "ambiguous_device")
    assert "b/cuda:0/0000000b" in refusal.json()["detail"]
    for address in ("b/cuda:0/0000000b", "b%2Fcuda%3A0%2F0000000b"):
        assert client.post(f"/devices/{address}/pause").status_code == 204
        states = {one["host"]: one["worker_state"] for one in client.get("/devices").json()["devices"]}
        assert states == {"a": "active", "b": "paused"}
        assert client.post(f"/devices/{address}/resume").status_code == 204


def test_pages_and_answers_carry_safe_headers(client: TestClient) -> None:
    page = client.get("/")
    assert page.headers["content-type"].startswith("text/html")
    assert "script-src 'self'" in page.headers["content-security-policy"]
    assert client.get("/healthz").headers["x-content-type-options"] == "nosniff"


def test_every_documented_path_is_in_the_openapi_document(client: TestClient) -> None:
    document = client.get("/openapi.json").json()
    assert {
        "/generate",
        "/plan",
        "/jobs",
        "/jobs/{job_id}",
        "/jobs/{job_id}/events",
        "/jobs/{job_id}/video",
        "/jobs/{job_id}/redecode",
        "/devices",
        "/models",
        "/healthz",
        "/readyz",
        "/metrics",
    } <= set(document["paths"])
    body = document["paths"]["/generate"]["post"]["requestBody"]["content"]
    assert set(body) == {"application/json", "multipart/form-data"}
    assert body["multipart/form-data"]["schema"]["required"] == ["prompt"]


KEY, OTHER = "k" * 20, "o" * 20


@pytest.fixture
def guarded(client_of: Callable[..., TestClient], tmp_path: Path) -> TestClient:
    return client_of(Settings(data_dir=tmp_path, api_keys=(KEY, OTHER)))


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 401),
        ({"Authorization": "Bearer wrong"}, 401),
        ({"Authorization": f"Basic {KEY}"}, 401),
        ({"Authorization": f"Bearer {KEY}"}, 200),
        ({"X-API-Key": KEY}, 200),
        ({"Cookie": f"framefit_key={KEY}"}, 200),
    ],
)
def test_only_known_keys_are_let_in(guarded: TestClient, headers: dict[str, str], status: int) -> None:
    assert guarded.get("/jobs", headers=headers).status_code == status
    assert guarded.get("/healthz").status_code == 200


def test_the_page_keeps_a_key_in_a_cookie_that_scripts_cannot_read(guarded: TestClient) -> None:
    assert guarded.post("/session", json={"key": "wrong"}).status_code == 401
    opened = guarded.post("/session", json={"key": KEY})
    assert opened.status_code == 204
    assert {"HttpOnly", "SameSite=strict"} <= set(opened.headers["set-cookie"].split("; "))
    assert guarded.get("/jobs").status_code == 200, "the cookie is used from here on"
    assert guarded.get("/session").json()["needs_key"] is True
    guarded.delete("/session")
    assert guarded.get("/jobs").status_code == 401
    assert guarded.get("/session").status_code == 401


def test_without_keys_everyone_is_an_administrator(client: TestClient) -> None:
    open_to_all = {"needs_key": False, "key_name": None, "admin": True, "embed_metadata": True}
    assert client.get("/session").json() == open_to_all


def test_pages_of_other_sites_cannot_work_the_service(client: TestClient) -> None:
    for site, status in (("cross-site", 403), ("same-site", 403), ("same-origin", 200), ("none", 200)):
        assert client.post("/plan", json={}, headers={"Sec-Fetch-Site": site}).status_code == status
    assert client.get("/jobs", headers={"Sec-Fetch-Site": "cross-site"}).status_code == 200


def test_everything_the_page_loads_is_there(client: TestClient) -> None:
    static = Path(api.__file__).with_name("static")
    page = (static / "index.html").read_text()
    scripts = "".join(path.read_text() for path in static.glob("*.js"))
    wanted = {f"/{path}" for path in re.findall(r'"(static/[^"]+)"', page)}
    wanted |= {f"/static/{name}" for name in re.findall(r'from "\./([^"]+)"', scripts)}
    assert len(wanted) >= 10
    for path in wanted:
        assert client.get(path).status_code == 200, path


def test_a_key_sees_its_own_jobs_only(guarded: TestClient, picture: bytes) -> None:
    mine, theirs = {"X-API-Key": KEY}, {"X-API-Key": OTHER}
    files = {"image": ("a.jpg", picture)}
    job = guarded.post("/generate", data={"prompt": "x"}, files=files, headers=mine).json()
    assert guarded.get(f"/jobs/{job['id']}", headers=mine).status_code == 200
    for method, path in (
        ("GET", ""),
        ("DELETE", ""),
        ("GET", "/events"),
        ("GET", "/image"),
        ("POST", "/redecode"),
    ):
        assert guarded.request(method, f"/jobs/{job['id']}{path}", headers=theirs).status_code == 404
    assert guarded.get("/jobs", headers=theirs).json()["jobs"] == []


def test_the_api_loads_neither_torch_nor_diffusers() -> None:
    program = (
        "import sys, app.api, app.config; app.api.create_app(app.config.Settings(data_dir=sys.argv[1]));"
        "heavy = {'torch', 'diffusers', 'transformers', 'numpy'};"
        "print(sorted(heavy & {name.split('.')[0] for name in sys.modules}))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, "/nonexistent-is-fine-until-start"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=500,
        check=False,
    )
    assert done.stdout.strip() == "[]", done.stdout + done.stderr


def test_the_api_answers_over_a_real_socket_soon_after_its_start(tmp_path: Path, unused_port: int) -> None:
    program = (
        "import sys, uvicorn, app.api, app.config;"
        "application = app.api.create_app(app.config.Settings(data_dir=sys.argv[1]));"
        "uvicorn.run(application, port=int(sys.argv[2]), log_level='error')"
    )
    process = subprocess.Popen([sys.executable, "-c", program, str(tmp_path), str(unused_port)], cwd=ROOT)
    try:
        answer = _first_answer(f"http://127.0.0.1:{unused_port}/healthz", within_seconds=60)
        assert answer["status"] == "ok"
        used = psutil.Process(process.pid).cpu_times()
        # Two seconds on an idle machine. Processor time says so on a busy one, too, if not as sharply.
        assert used.user + used.system < 4
        body = httpx.get(f"http://127.0.0.1:{unused_port}/metrics", follow_redirects=False, timeout=60)
        assert body.status_code == 200
    finally:
        process.terminate()
        process.wait(timeout=120)


def _first_answer(url: str, *, within_seconds: float) -> Any:
    deadline = time.monotonic() + within_seconds
    while True:
        try:
            return httpx.get(url, timeout=2).json()
        except httpx.TransportError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.02)
