"""What a request may give beside an image and a prompt: a last image, a loop, motion; only where the model
takes it.
"""

import base64
import json
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from app.config import Settings
from app.models.entries import BUILT_IN_MODELS
from app.store import JobStore


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    """A model that takes everything beside the built-in ones, which take nothing."""
    tiny = tomllib.loads(BUILT_IN_MODELS.read_text())["models"]["tiny"]
    entry = {**tiny, "inputs": ["last_image", "loop", "fs"], "defaults": {**tiny["defaults"], "fs": 24}}
    tables = {"": entry} | {f".{name}": entry.pop(name) for name in ("defaults", "limits")}
    lines = []
    for name, table in tables.items():
        lines += [f"[models.between{name}]"]
        lines += [f"{key} = {json.dumps(value)}" for key, value in table.items()]
    models = tmp_path / "models.toml"
    models.write_text("\n".join(lines))
    return Settings(data_dir=tmp_path, models_file=models, poll_seconds=0.02)


Generate = Callable[..., Any]


@pytest.fixture
def generate(client: TestClient, picture: bytes) -> Generate:
    def post(last: bytes | None = None, key: str | None = None, **fields: str) -> Any:
        files = {"image": ("a.jpg", picture)} | ({} if last is None else {"last_image": ("b.jpg", last)})
        form = {"prompt": "x", "model": "between", **fields}
        return client.post(
            "/generate", data=form, files=files, headers={} if key is None else {"Idempotency-Key": key}
        )

    return post


@pytest.fixture
def ending(make_picture: Callable[..., bytes]) -> bytes:
    return make_picture("PNG", (40, 40))


def test_a_last_image_is_kept_with_the_job_and_handed_out_again(
    client: TestClient, generate: Generate, ending: bytes, app_store: JobStore
) -> None:
    job = generate(ending).json()
    assert app_store.last_image(job["id"]) == ending
    assert app_store.get(job["id"]).has_last_image
    assert client.get(job["links"]["last_image"]).content == ending
    without = generate().json()
    assert app_store.last_image(without["id"]) is None
    assert "last_image" not in without["links"]
    answer = client.get(f"/jobs/{without['id']}/last_image")
    assert (answer.status_code, answer.json()["code"]) == (404, "no_last_image")


def test_both_images_come_as_data_urls_in_json_too(
    client: TestClient, picture: bytes, ending: bytes, app_store: JobStore
) -> None:
    def url(data: bytes) -> str:
        return f"data:image/png;base64,{base64.b64encode(data).decode()}"

    body = {"prompt": "x", "model": "between", "image": url(picture), "last_image": url(ending)}
    job_id = client.post("/generate", json=body).json()["id"]
    assert (app_store.image(job_id), app_store.last_image(job_id)) == (picture, ending)
    assert (
        app_store.last_image(client.post("/generate", json={**body, "last_image": None}).json()["id"]) is None
    )
    answer = client.post("/generate", json={**body, "last_image": "http://127.0.0.1/"})
    assert (answer.status_code, answer.json()["code"]) == (422, "bad_data_url")
    assert "last_image" in answer.json()["detail"]


def test_openais_shape_takes_a_last_image_too(
    client: TestClient, picture: bytes, ending: bytes, app_store: JobStore
) -> None:
    files = {"input_reference": ("a.jpg", picture), "last_image": ("b.png", ending)}
    video = client.post("/v1/videos", data={"prompt": "x", "model": "between"}, files=files).json()
    assert (app_store.image(video["id"]), app_store.last_image(video["id"])) == (picture, ending)


@pytest.mark.parametrize(
    ("ending", "status", "code"),
    [(b"", 422, "missing_image"), (b"no picture", 422, "not_an_image"), (b"\x89PNG", 422, "not_an_image")],
)
def test_a_bad_last_image_is_refused_as_a_bad_image_is(
    generate: Generate, app_store: JobStore, ending: bytes, status: int, code: str
) -> None:
    answer = generate(ending)
    assert (answer.status_code, answer.json()["code"]) == (status, code)
    assert answer.json()["detail"].startswith("last_image: ")
    assert app_store.page() == []


def test_a_last_image_that_is_too_large_is_refused(
    client_of: Callable[..., TestClient],
    settings: Settings,
    picture: bytes,
    ending: bytes,
    make_picture: Callable[..., bytes],
) -> None:
    client = client_of(settings.model_copy(update={"max_image_pixels": 64 * 48}))
    files = {"image": ("a.jpg", picture), "last_image": ("b.png", ending)}
    assert client.post("/generate", data={"prompt": "x", "model": "between"}, files=files).status_code == 202
    files["last_image"] = ("b.png", make_picture("PNG", (65, 48)))
    answer = client.post("/generate", data={"prompt": "x", "model": "between"}, files=files)
    assert (answer.status_code, answer.json()["code"]) == (413, "image_too_large")


@pytest.mark.parametrize(
    ("fields", "code", "field"),
    [
        ({"model": "tiny", "loop": "true"}, "input_not_taken", "loop"),
        ({"model": "tiny", "fs": "3"}, "input_not_taken", "fs"),
        ({"model": "tiny", "last": "yes"}, "input_not_taken", "last_image"),
        ({"loop": "true", "last": "yes"}, "contradicting_inputs", "loop"),
        ({"loop": "true", "num_frames": "1"}, "bad_frame_count", "num_frames"),
        ({"fs": "0"}, "invalid_fs", None),
        ({"loop": "often"}, "invalid_loop", None),
    ],
)
def test_inputs_that_the_model_does_not_take_or_that_contradict_each_other_are_refused(
    client: TestClient,
    generate: Generate,
    app_store: JobStore,
    ending: bytes,
    fields: dict[str, str],
    code: str,
    field: str | None,
) -> None:
    last = ending if fields.pop("last", None) else None
    answer = generate(last, **fields)
    assert (answer.status_code, answer.json()["code"], answer.json().get("field")) == (422, code, field)
    assert app_store.page() == []
    if last is None:
        plan = client.post("/plan", json={"model": "between", **fields})
        assert plan.json()["code"] == code


def test_a_model_says_what_it_takes_and_its_motion_is_the_default(
    client: TestClient, generate: Generate
) -> None:
    views = {view["name"]: view for view in client.get("/models").json()["models"]}
    assert views["tiny"]["inputs"] == []
    assert "fs" not in views["tiny"]["defaults"]
    assert views["between"]["inputs"] == ["fs", "last_image", "loop"]
    assert generate().json()["request"]["fs"] == views["between"]["defaults"]["fs"] == 24
    assert generate(fs="10").json()["request"]["fs"] == 10
    assert generate(model="tiny").json()["request"]["fs"] is None


def test_an_idempotency_key_covers_the_last_image(generate: Generate, picture: bytes, ending: bytes) -> None:
    first = generate(ending, key="k")
    assert generate(ending, key="k").json()["id"] == first.json()["id"]
    for last in (None, picture):
        answer = generate(last, key="k")
        assert (answer.status_code, answer.json()["code"]) == (422, "idempotency_key_reused")
