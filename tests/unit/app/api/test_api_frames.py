"""Key frames of a request, and a request that continues an earlier job's video."""

import base64
import io
import json
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from starlette.testclient import TestClient

from app.artifacts.local_folder import job_artifacts
from app.config import Settings
from app.jobs import JobStatus
from app.models.entries import BUILT_IN_MODELS, load_models
from app.store import JobStore
from app.store.upkeep import deletion

Generate = Callable[..., Any]


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    """Models that take key frames, anywhere and at some frames; one that needs two images."""
    tiny = tomllib.loads(BUILT_IN_MODELS.read_text())["models"]["tiny"]
    del tiny["notice"]
    text = ""
    for name, changes in {
        "keyed": {"pipeline": "LTXConditionPipeline"},
        "keyed2": {"pipeline": "LTX2ConditionPipeline"},
        "between": {"inputs": ["last_image"], "requires": ["last_image"]},
    }.items():
        entry = {**tiny, **changes}
        tables = {"": entry} | {f".{part}": entry.pop(part) for part in ("defaults", "limits")}
        for part, table in tables.items():
            text += f"[models.{name}{part}]\n"
            text += "".join(f"{key} = {json.dumps(value)}\n" for key, value in table.items())
    (tmp_path / "models.toml").write_text(text)
    return Settings(data_dir=tmp_path, models_file=tmp_path / "models.toml", poll_seconds=0.02)


@pytest.fixture
def pictures(make_picture: Callable[..., bytes]) -> list[bytes]:
    return [make_picture("PNG", (40 + number, 40)) for number in range(3)]


@pytest.fixture
def generate(client: TestClient, pictures: list[bytes]) -> Generate:
    def post(keyframes: Any, files: dict[str, int] | None = None, **fields: str) -> Any:
        files = {f"keyframe_{n}": 1 + n for n in range(len(keyframes))} if files is None else files
        form = {"prompt": "x", "model": "keyed", "keyframes": json.dumps(keyframes), **fields}
        sent = {name: (f"{name}.png", pictures[number]) for name, number in {"image": 0, **files}.items()}
        return client.post("/generate", data=form, files=sent)

    return post


def url(data: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(data).decode()}"


def test_key_frames_are_kept_with_the_job_counted_from_its_start_and_handed_out_again(
    client: TestClient, generate: Generate, pictures: list[bytes], app_store: JobStore
) -> None:
    job = generate([{"frame": -1, "strength": 0.5}, {"frame": 8}]).json()
    assert job["request"]["keyframes"] == [{"frame": 24, "strength": 0.5}, {"frame": 8, "strength": 1.0}]
    assert app_store.keyframes(job["id"]) == pictures[1:]
    assert [client.get(link).content for link in job["links"]["keyframes"]] == pictures[1:]
    assert [each["width"] for each in job["pictures"]["keyframes"]] == [41, 42]
    answer = client.get(f"/jobs/{job['id']}/keyframes/2")
    assert (answer.status_code, answer.json()["code"]) == (404, "no_keyframe")
    without = generate([]).json()
    assert "keyframes" not in without["links"] | without["pictures"]


def test_key_frames_come_with_their_pictures_in_json_too(
    client: TestClient, pictures: list[bytes], app_store: JobStore
) -> None:
    keyframes = [
        {"frame": 8, "image": url(pictures[1])},
        {"frame": 3, "image": {"image_url": url(pictures[2])}},
    ]
    body = {"prompt": "x", "model": "keyed", "image": url(pictures[0]), "keyframes": keyframes}
    job = client.post("/generate", json=body).json()
    assert app_store.keyframes(job["id"]) == pictures[1:]
    batch = client.post("/generate/batch", json={"jobs": [body, {**body, "keyframes": []}]}).json()
    assert [len(app_store.keyframes(each["id"])) for each in batch["jobs"]] == [2, 0]
    video = {**body, "input_reference": {"image_url": body.pop("image")}}
    del video["image"]
    assert len(app_store.keyframes(client.post("/v1/videos", json=video).json()["id"])) == 2


def test_key_frames_go_with_a_remix_and_with_a_deletion(
    client: TestClient,
    generate: Generate,
    pictures: list[bytes],
    app_store: JobStore,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(deletion, "GRACE_SECONDS", -1.0)
    job_id = generate([{"frame": 8}]).json()["id"]
    remix = client.post(f"/v1/videos/{job_id}/remix", json={"prompt": "y"}).json()
    client.post(f"/jobs/{job_id}/delete")
    app_store.erase_deleted(lambda _job: None)
    assert app_store.keyframes(job_id) == []
    assert app_store.keyframes(remix["id"]) == pictures[1:2]
    assert app_store.get(remix["id"]).spec.keyframes[0].frame == 8


@pytest.mark.parametrize("frames", [9, 33])
def test_a_picture_at_the_end_stays_at_the_end_of_a_remix_of_another_length(
    client: TestClient, generate: Generate, frames: int
) -> None:
    keyframes = [{"frame": -1, "strength": 0.5}, {"frame": 3}]
    job_id = generate(keyframes, num_frames="17").json()["id"]
    answer = client.post(f"/v1/videos/{job_id}/remix", json={"prompt": "y", "num_frames": frames})
    request = client.get(f"/jobs/{answer.json()['id']}").json()["request"]
    assert [each["frame"] for each in request["keyframes"]] == [frames - 1, 3]


@pytest.mark.parametrize(
    ("keyframes", "more", "code", "data"),
    [
        ([{"frame": 25}], {}, "keyframe_out_of_range", {"index": 0, "nearest_frame": 24}),
        ([{"frame": -26}], {}, "keyframe_out_of_range", {"index": 0, "nearest_frame": 1}),
        ([{"frame": 8}, {"frame": -17}], {}, "duplicate_keyframe", {"index": 1}),
        ([{"frame": 0}], {}, "duplicate_keyframe", {"index": 0}),
        ([{"frame": 24}], {"files": {"keyframe_0": 1, "last_image": 2}}, "duplicate_keyframe", {}),
        ([{"frame": 6}], {"model": "keyed2"}, "keyframe_not_there", {"nearest_frame": 9}),
        ([{"frame": 9}, {"frame": 8}], {"model": "keyed2"}, "keyframe_not_there", {"nearest_frame": 1}),
        ([{"frame": 17}, {"frame": -1}], {"model": "keyed2"}, "duplicate_keyframe", {"index": 1}),
        ([{"frame": 8}], {"files": {}}, "missing_keyframe_image", {"index": 0}),
        ([{"frame": 8}], {"files": {"keyframe_0": 1, "keyframe_1": 2}}, "unknown_field", {}),
        ([{"frame": 8, "strength": 0}], {}, "invalid_keyframes", {}),
        ([{"frame": 1}] * 9, {"files": {}}, "too_many_keyframes", {}),
        ([{"frame": 8}], {"model": "between"}, "input_not_taken", {"models": ["keyed", "keyed2"]}),
        ("", {"model": "between", "files": {}}, "missing_last_image", {}),
        ("", {"model": "tiny", "files": {"last_image": 1}}, "input_not_taken", {"field": "last_image"}),
    ],
)
def test_key_frames_that_cannot_be_are_refused_with_a_code(
    generate: Generate, app_store: JobStore, keyframes: Any, more: dict[str, Any], code: str, data: Any
) -> None:
    answer = generate(keyframes or [], **more).json()
    assert answer["code"] == code, answer
    assert data.items() <= answer.items()
    assert app_store.page() == []


def test_the_last_frame_is_a_key_frame_where_others_stand_apart(generate: Generate) -> None:
    job = generate([{"frame": -1}, {"frame": 9}], model="keyed2").json()
    assert [each["frame"] for each in job["request"]["keyframes"]] == [24, 9]


@pytest.mark.parametrize(
    ("keyframe", "refused"),
    [(1, False), (9, False), (16, True), (17, True), (24, True)],
)
def test_a_last_image_and_a_key_frame_are_not_for_the_same_eight_frames(
    generate: Generate, keyframe: int, refused: bool
) -> None:
    files = {"keyframe_0": 1, "last_image": 2}
    answer = generate([{"frame": keyframe}], files, model="keyed2").json()
    assert ("code" in answer) == refused, answer
    if keyframe >= 17:
        assert answer["code"] == "duplicate_keyframe"
        assert "frames 17 to 24" in answer["detail"]
    if keyframe == 16:
        assert (answer["code"], answer["nearest_frame"]) == ("keyframe_not_there", 9)


@pytest.mark.parametrize("model", ["keyed", "keyed2"])
@pytest.mark.parametrize("asked", [-100, 0, 2, 23, 24, 25])
def test_the_nearest_frame_of_a_refusal_is_taken(generate: Generate, asked: int, model: str) -> None:
    files = {"keyframe_0": 1, "last_image": 2}
    answer = generate([{"frame": asked}], files, model=model)
    if "nearest_frame" in answer.json():
        answer = generate([{"frame": answer.json()["nearest_frame"]}], files, model=model)
        assert answer.status_code == 202, answer.json()
    elif answer.status_code != 202:
        assert answer.json()["code"] == "duplicate_keyframe"


def test_a_model_says_where_it_takes_key_frames_and_what_it_needs(client: TestClient) -> None:
    views = {view["name"]: view for view in client.get("/models").json()["models"]}
    assert views["keyed"]["inputs"] == ["keyframes", "last_image"]
    assert views["keyed"]["keyframes"] == {"most": 8, "apart": 1, "rule": "any frame after the first"}
    assert views["keyed2"]["keyframes"]["rule"] == "8k+1 or the last frame"
    assert views["between"]["requires"] == ["last_image"]
    assert (views["tiny"]["keyframes"], views["tiny"]["requires"]) == (None, [])


def test_a_plan_takes_key_frames_without_their_pictures(client: TestClient) -> None:
    fields = {"model": "keyed", "keyframes": [{"frame": -1}]}
    assert client.post("/plan", json=fields).json()["request"]["keyframes"][0]["frame"] == 24
    answer = client.post("/plan", json={**fields, "num_frames": 9, "keyframes": [{"frame": 9}]})
    assert answer.json()["code"] == "keyframe_out_of_range"


def test_an_idempotency_key_covers_key_frames(client: TestClient, pictures: list[bytes]) -> None:
    def post(number: int, frame: int) -> Any:
        keyframes = [{"frame": frame, "image": url(pictures[number])}]
        body = {"prompt": "x", "model": "keyed", "image": url(pictures[0]), "keyframes": keyframes}
        return client.post("/generate", json=body, headers={"Idempotency-Key": "k"})

    first = post(1, 24).json()["id"]
    assert post(1, -1).json()["id"] == first
    assert post(2, 24).json()["code"] == post(1, 23).json()["code"] == "idempotency_key_reused"


@pytest.fixture
def finished(settings: Settings, app_store: JobStore, client: TestClient, pictures: list[bytes]) -> str:
    """A job that has made its video, of another shape and rate than its model's defaults."""
    fields = {
        "prompt": "x",
        "model": "keyed",
        "width": 64,
        "height": 96,
        "fps": 10,
        "image": url(pictures[0]),
    }
    job_id: str = client.post("/generate", json=fields).json()["id"]
    claim = app_store.claim("here", models=list(load_models(settings)), loaded_model=None, lease_seconds=60)
    assert claim is not None
    artifacts = job_artifacts(settings.jobs_dir, job_id).make()
    Image.new("RGB", (64, 96), "teal").save(artifacts.frame("last"))
    result = {"frames": 25, "video_path": "x", "last_frame": True}
    assert app_store.finish(job_id, claim.token, status=JobStatus.SUCCEEDED, result=result)
    return job_id


def test_a_continuation_begins_with_the_last_frame_and_outlives_its_source(
    client: TestClient, app_store: JobStore, finished: str
) -> None:
    job = client.post("/generate", json={"prompt": "on", "continue_from": finished}).json()
    assert "code" not in job, job
    assert (job["continued_from"], job["model"]) == (finished, "keyed")
    assert [job["request"][name] for name in ("width", "height", "fps")] == [64, 96, 10]
    assert client.get(f"/jobs/{finished}").json()["continued_from"] is None
    client.post(f"/jobs/{finished}/delete")
    app_store.erase_deleted(lambda _job: None)
    first = Image.open(io.BytesIO(client.get(job["links"]["image"]).content))
    assert (first.size, first.getpixel((5, 5))) == ((64, 96), (0, 128, 128))
    answer = client.post("/generate", json={"prompt": "on", "continue_from": finished})
    assert (answer.status_code, answer.json()["code"]) == (410, "job_deleted")


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"width": 32}, {"model": "keyed", "width": 32, "fps": 10}),
        ({"model": "keyed", "fps": 8}, {"model": "keyed", "width": 64, "height": 96, "fps": 8}),
        ({"model": "keyed2"}, {"model": "keyed2", "fps": 12}),
    ],
)
def test_a_continuation_takes_its_own_values_and_another_model(
    client: TestClient, finished: str, fields: dict[str, Any], expected: dict[str, Any]
) -> None:
    body = {"prompt": "on", "continue_from": finished, **fields}
    assert expected.items() <= client.post("/generate", json=body).json()["request"].items()


def test_a_plan_and_openais_shape_take_a_continuation_too(client: TestClient, finished: str) -> None:
    plan = client.post("/plan", json={"continue_from": finished}).json()["request"]
    assert (plan["width"], plan["height"]) == (64, 96)
    video = client.post("/v1/videos", json={"prompt": "on", "continue_from": finished, "seconds": "2"}).json()
    assert (video["model"], video["size"]) == ("keyed", "64x96")


def test_what_cannot_be_continued_is_refused(client: TestClient, generate: Generate, finished: str) -> None:
    answer = generate([], continue_from=finished)
    assert (answer.status_code, answer.json()["code"]) == (422, "contradicting_inputs")
    queued = generate([]).json()["id"]
    answer = client.post("/generate", json={"prompt": "on", "continue_from": queued})
    assert (answer.status_code, answer.json()["code"]) == (409, "no_last_frame")
    assert answer.json()["job_status"] == "queued"
    answer = client.post("/generate", json={"prompt": "on", "continue_from": "0" * 32})
    assert (answer.status_code, answer.json()["code"]) == (404, "no_such_job")


def test_a_job_of_another_key_cannot_be_continued(
    client_of: Callable[..., TestClient], settings: Settings, pictures: list[bytes]
) -> None:
    client = client_of(settings.model_copy(update={"api_keys": ("one", "two")}))
    fields = {"prompt": "x", "model": "keyed", "image": url(pictures[0])}
    own = {"Authorization": "Bearer one"}
    job_id = client.post("/generate", json=fields, headers=own).json()["id"]
    body = {"prompt": "on", "continue_from": job_id}
    assert client.post("/generate", json=body, headers=own).json()["code"] == "no_last_frame"
    answer = client.post("/generate", json=body, headers={"Authorization": "Bearer two"})
    assert (answer.status_code, answer.json()["code"]) == (404, "no_such_job")


def continue_under_a_key(client: TestClient, path: str, body: dict[str, Any]) -> Any:
    return client.post(path, json={"prompt": "on", **body}, headers={"Idempotency-Key": "again"})


@pytest.mark.parametrize("path", ["/generate", "/v1/videos"])
@pytest.mark.parametrize("more", [{}, {"width": 32}, {"model": "keyed2", "seed": 4}])
def test_a_repeated_continuation_is_answered_with_its_job_though_the_source_is_gone(
    client: TestClient, app_store: JobStore, finished: str, path: str, more: dict[str, Any]
) -> None:
    body = {"continue_from": finished, **more}
    job_id = continue_under_a_key(client, path, body).json()["id"]
    client.post(f"/jobs/{finished}/delete")
    assert continue_under_a_key(client, path, body).json()["id"] == job_id
    app_store.erase_deleted(lambda _job: None)
    assert continue_under_a_key(client, path, body).json()["id"] == job_id
    assert "idempotency_key_reused" in continue_under_a_key(client, path, {**body, "fps": 7}).text


def test_a_repeated_continuation_is_the_same_request_though_the_source_was_decoded_again(
    client: TestClient, settings: Settings, finished: str
) -> None:
    job_id = continue_under_a_key(client, "/generate", {"continue_from": finished}).json()["id"]
    Image.new("RGB", (64, 96), "navy").save(job_artifacts(settings.jobs_dir, finished).frame("last"))
    assert continue_under_a_key(client, "/generate", {"continue_from": finished}).json()["id"] == job_id


def test_a_continuation_is_new_where_its_key_is_free_or_another_requests(
    client: TestClient, finished: str
) -> None:
    job_id = continue_under_a_key(client, "/generate", {"continue_from": finished}).json()["id"]
    client.post(f"/jobs/{finished}/delete")
    other = continue_under_a_key(client, "/generate", {"continue_from": "0" * 32})
    assert (other.status_code, other.json()["code"]) == (404, "no_such_job")
    client.delete(f"/jobs/{job_id}")
    gone = continue_under_a_key(client, "/generate", {"continue_from": finished})
    assert (gone.status_code, gone.json()["code"]) == (410, "job_deleted")


@pytest.mark.parametrize(("more", "frames"), [({}, 17), ({"fps": 20}, 41), ({"model": "keyed2"}, 25)])
def test_seconds_of_a_continuation_are_counted_at_the_rate_that_it_gets(
    client: TestClient, finished: str, more: dict[str, Any], frames: int
) -> None:
    body = {"prompt": "on", "continue_from": finished, "seconds": "2", **more}
    video = client.post("/v1/videos", json=body).json()
    assert client.get(f"/jobs/{video['id']}").json()["request"]["num_frames"] == frames, video
