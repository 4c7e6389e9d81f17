"""POST /generate, /plan: what is taken, what is refused, and that a refusal leaves nothing behind."""

import base64
import io
import json
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from starlette.testclient import TestClient

from adaptive.memory.profile import MemoryProfile
from app.config import Settings
from app.jobs import Event, JobStatus, Stage
from app.scheduling.eta import seconds_until_turn
from app.store import JobStore

Post = Callable[..., dict[str, Any]]
MIB = 2**20


def test_a_multipart_request_is_accepted_with_its_provisional_plan(submit: Post, app_store: JobStore) -> None:
    job = submit(width=128, seed=11)
    assert (job["status"], job["queue_position"]) == ("queued", 1)
    assert job["request"]["width"] == 128
    assert job["request"]["height"] == 128
    assert job["request"]["seed"] == 11
    assert job["plan"]["needed_bytes"] > 0
    assert app_store.get(job["id"]).status is JobStatus.QUEUED
    assert "demonstration" in job["notice"]


def test_json_with_a_data_url_is_the_same_request(
    client: TestClient, picture: bytes, app_store: JobStore
) -> None:
    url = f"data:image/jpeg;base64,{base64.b64encode(picture).decode()}"
    answer = client.post("/generate", json={"prompt": "x", "image": url, "num_frames": 17})
    assert answer.status_code == 202
    assert answer.headers["location"] == answer.json()["links"]["self"]
    assert app_store.image(answer.json()["id"]) == picture


def png_bomb(width: int, height: int) -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    rows = zlib.compress(bytes(1_000_000))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def jpeg() -> bytes:
    file = io.BytesIO()
    Image.linear_gradient("L").resize((64, 48)).convert("RGB").save(file, "JPEG")
    return file.getvalue()


BAD_FIELDS = [
    ({"width": "250"}, 422, "size_not_a_multiple"),
    ({"num_frames": "24"}, 422, "bad_frame_count"),
    ({"model": "nonesuch"}, 422, "unknown_model"),
    ({"modle": "tiny"}, 422, "unknown_field"),
    ({"prompt": ""}, 422, "empty_prompt"),
    ({"prompt": "  \n "}, 422, "empty_prompt"),
    ({"prompt": "long " * 1000}, 422, "invalid_prompt"),
    ({"prompt": "x" * 1_000_000}, 422, "field_too_large"),
    ({"guidance_scale": "NaN"}, 422, "invalid_guidance_scale"),
    ({"guidance_scale": "inf"}, 422, "invalid_guidance_scale"),
    ({"guidance_scale": "-1"}, 422, "invalid_guidance_scale"),
    ({"width": "9" * 5000}, 422, "invalid_width"),
    ({"num_inference_steps": "0"}, 422, "invalid_num_inference_steps"),
    ({"num_inference_steps": "900"}, 422, "over_model_limit"),
    ({"width": "8192", "height": "8192"}, 422, "over_model_limit"),
    ({"decode_strategy": "fast"}, 422, "invalid_decode_strategy"),
    ({"decode_strategy": "batched", "frames_per_chunk": "2"}, 422, "invalid_request"),
    ({"decode_strategy": "tiled", "frames_per_chunk": "1"}, 422, "invalid_request"),
    ({"decode_strategy": "approximate_tiled"}, 422, "approximate_not_allowed"),
    ({"seed": "-2"}, 422, "invalid_seed"),
    ({"priority": "11"}, 422, "invalid_priority"),
    ({"image": "not a file but text"}, 422, "not_an_image"),
]


@pytest.mark.parametrize(("fields", "status", "code"), BAD_FIELDS)
def test_a_bad_field_is_refused_by_its_code_and_nothing_is_queued(
    client: TestClient, app_store: JobStore, picture: bytes, fields: dict[str, str], status: int, code: str
) -> None:
    parts: dict[str, Any] = {"prompt": (None, "x"), "image": ("a.jpg", picture)}
    parts |= {name: (None, value) for name, value in fields.items()}
    answer = client.post("/generate", files=parts)
    assert (answer.status_code, answer.json()["code"]) == (status, code)
    assert answer.headers["content-type"] == "application/problem+json"
    assert app_store.page() == []


BAD_IMAGES = [
    (b"", 422, "missing_image"),
    (b"hello, I am no picture" * 100, 422, "not_an_image"),
    (b"<svg xmlns='http://www.w3.org/2000/svg' width='9' height='9'/>", 422, "not_an_image"),
    (jpeg()[: len(jpeg()) // 2], 422, "broken_image"),
    (png_bomb(30_000, 30_000), 413, "image_too_large"),
    (png_bomb(1, 100_000), 413, "image_too_large"),
    (png_bomb(1, 4), 422, "image_too_small"),
    (
        b"RIFF\x00\x00\x00\x00WEBPVP8X\x0a\x00\x00\x00\x10\x00\x00\x00\xff\xff\xff\xff\xff\xff",
        413,
        "image_too_large",
    ),
    (b"GIF89a\xff\xff\xff\xff\x00\x00\x00", 422, "not_an_image"),
]


@pytest.mark.parametrize(("data", "status", "code"), BAD_IMAGES)
def test_a_bad_image_is_refused_by_its_code_and_nothing_is_queued(
    client: TestClient, app_store: JobStore, data: bytes, status: int, code: str
) -> None:
    answer = client.post("/generate", data={"prompt": "x"}, files={"image": ("../../etc/passwd", data)})
    assert (answer.status_code, answer.json()["code"]) == (status, code)
    assert app_store.page() == []


def test_a_request_without_an_image_is_refused(client: TestClient, app_store: JobStore) -> None:
    answer = client.post("/generate", data={"prompt": "x"}, files={"other": (None, "x")})
    assert answer.json()["code"] == "unknown_field"
    answer = client.post("/generate", files={"prompt": (None, "x")})
    assert (answer.status_code, answer.json()["code"]) == (422, "missing_image")
    assert app_store.page() == []


BAD_BODIES = [
    ("application/json", b"{", 400, "bad_json"),
    ("application/json", b"[" * 100_000, 400, "bad_json"),
    ("application/json", b"[1]", 400, "bad_json"),
    ("application/json", b'{"prompt": "x", "image": "http://127.0.0.1/"}', 422, "bad_data_url"),
    ("application/json", b'{"prompt": "x", "image": "data:image/png;base64,@@"}', 422, "bad_data_url"),
    (
        "application/json",
        b'{"prompt": "x", "guidance_scale": NaN, "image": "data:;base64,"}',
        422,
        "invalid_guidance_scale",
    ),
    ("text/plain", b"hello", 415, "unsupported_media_type"),
    ("multipart/form-data", b"hello", 400, "bad_multipart"),
    ("multipart/form-data; boundary=b", b"hello", 400, "bad_multipart"),
    (
        "multipart/form-data; boundary=b",
        b"--b\r\nContent-Disposition: form-data\r\n\r\nx\r\n--b--\r\n",
        400,
        "bad_multipart",
    ),
    (
        "multipart/form-data; boundary=b",
        b'--b\r\nContent-Disposition: form-data; name="prompt"\r\n\r\ncut',
        400,
        "bad_multipart",
    ),
    (
        "multipart/form-data; boundary=b",
        b'--b\r\nContent-Disposition: form-data; name="prompt"\r\n\r\nx\r\n' * 10_000 + b"--b--\r\n",
        400,
        "too_many_parts",
    ),
    (
        "multipart/form-data; boundary=b",
        b'--b\r\nContent-Disposition: form-data; name="prompt"\r\n\r\nx\r\n' * 2 + b"--b--\r\n",
        422,
        "duplicate_field",
    ),
]


@pytest.mark.parametrize(("kind", "body", "status", "code"), BAD_BODIES)
def test_a_bad_body_is_refused_by_its_code(
    client: TestClient, app_store: JobStore, kind: str, body: bytes, status: int, code: str
) -> None:
    answer = client.post("/generate", content=body, headers={"content-type": kind})
    assert (answer.status_code, answer.json()["code"]) == (status, code)
    assert app_store.page() == []


def test_a_body_of_50_mb_is_refused_while_it_is_read(client: TestClient, app_store: JobStore) -> None:
    answer = client.post("/generate", data={"prompt": "x"}, files={"image": ("a.jpg", bytes(50_000_000))})
    assert (answer.status_code, answer.json()["code"]) == (413, "body_too_large")
    assert app_store.page() == []


def test_what_no_device_can_hold_is_refused_with_the_numbers_and_a_shape_that_would_fit(
    client: TestClient, app_store: JobStore, picture: bytes
) -> None:
    device = {
        "name": "cpu",
        "kind": "cpu",
        "free_bytes": 10 * 2**20,
        "total_bytes": 2**31,
        "capacity_bytes": 20 * 2**20,
    }
    app_store.register_worker("w", device)
    form = {"prompt": "x", "width": "512", "height": "512"}
    answer = client.post("/generate", data=form, files={"image": ("a.jpg", picture)})
    body = answer.json()
    assert (answer.status_code, body["code"]) == (422, "does_not_fit")
    assert body["needed_bytes"] > body["available_bytes"] == 20 * 2**20
    assert app_store.page() == []
    largest = body["largest_shape_that_fits"]
    again = client.post("/generate", data={"prompt": "x", **largest}, files={"image": ("a.jpg", picture)})
    assert again.status_code == 202, "the shape that is offered must be taken"


def test_a_refusal_tells_whether_approximate_decoding_would_fit_and_it_then_is_offered_so(
    client: TestClient, picture: bytes
) -> None:
    form = {"model": "tiny", "width": 1024, "height": 1024, "num_frames": 9}
    ask = {**form, "exact_only": False, "memory_budget_bytes": 2**40}
    rungs = client.post("/plan", json=ask).json()["rungs"]
    approximate = [rung["predicted_peak_bytes"] for rung in rungs if not rung["exact"]]
    assert all(rung["strategy"].startswith("approximate") == (not rung["exact"]) for rung in rungs)
    assert min(approximate) < min(rung["predicted_peak_bytes"] for rung in rungs if rung["exact"])
    for budget, fits in ((min(approximate), True), (min(approximate) - 1, False)):
        data = {"prompt": "x", **form, "memory_budget_bytes": str(budget)}
        body = client.post("/generate", data=data, files={"image": ("a.jpg", picture)}).json()
        assert (body["code"], body["fits_with_exact_only_false"]) == ("does_not_fit", fits)
        assert ("exact_only=false" in body["detail"]) == fits
    accepted = {"prompt": "x", **form, "memory_budget_bytes": str(min(approximate)), "exact_only": "false"}
    answer = client.post("/generate", data=accepted, files={"image": ("a.jpg", picture)})
    assert answer.status_code == 202


def test_what_only_does_not_fit_now_is_queued_and_says_so(
    client: TestClient, app_store: JobStore, submit: Post
) -> None:
    device = {
        "name": "cpu",
        "kind": "cpu",
        "free_bytes": 2**20,
        "total_bytes": 2**36,
        "capacity_bytes": 2**36,
    }
    app_store.register_worker("w", device)
    assert client.get("/readyz").json()["ready"]
    plan = submit()["plan"]
    assert plan["fits_now"] is False
    assert plan["reason"] == "waits_for_memory"


def test_a_budget_that_is_too_small_is_refused(client: TestClient, picture: bytes) -> None:
    form = {"prompt": "x", "memory_budget_bytes": "1000"}
    answer = client.post("/generate", data=form, files={"image": ("a.jpg", picture)})
    assert (answer.json()["code"], answer.json()["available_bytes"]) == ("does_not_fit", 1000)


def test_clients_are_asked_to_retry_while_the_profile_is_being_traced(
    client_of: Callable[..., TestClient], settings: Settings, picture: bytes
) -> None:
    client = client_of(settings, load_profile=lambda _entry: None)
    answer = client.post("/generate", data={"prompt": "x"}, files={"image": ("a.jpg", picture)})
    assert (answer.status_code, answer.json()["code"]) == (503, "profile_pending")
    assert int(answer.headers["retry-after"]) > 0


def test_an_idempotency_key_gives_the_same_job_and_refuses_another_payload(
    client: TestClient, app_store: JobStore, picture: bytes
) -> None:
    def post(prompt: str) -> Any:
        headers = {"Idempotency-Key": "k1"}
        return client.post(
            "/generate", data={"prompt": prompt}, files={"image": ("a.jpg", picture)}, headers=headers
        )

    first, second, other = post("x"), post("x"), post("y")
    assert first.json()["id"] == second.json()["id"]
    assert second.headers["idempotent-replayed"] == "true"
    assert (other.status_code, other.json()["code"]) == (422, "idempotency_key_reused")
    app_store.cancel(first.json()["id"])
    assert post("x").json()["id"] != first.json()["id"], "an ended attempt may be made again under its key"


def test_a_full_queue_answers_429_with_retry_after(
    client_of: Callable[..., TestClient], tmp_path: Path, picture: bytes
) -> None:
    client = client_of(Settings(data_dir=tmp_path, max_queued=1))
    answers = [
        client.post("/generate", data={"prompt": "x"}, files={"image": ("a", picture)}) for _ in range(2)
    ]
    assert [answer.status_code for answer in answers] == [202, 429]
    assert answers[1].json()["code"] == "queue_full"
    assert answers[1].headers["retry-after"] == "60", "nothing ran yet, so nothing is known"


@pytest.mark.parametrize(("seconds", "workers", "expected"), [(90.4, 1, 91), (90.4, 2, 46), (1e6, 1, 3600)])
def test_a_full_queue_says_when_a_place_is_likely_to_be_free(
    client_of: Callable[..., TestClient],
    tmp_path: Path,
    picture: bytes,
    seconds: float,
    workers: int,
    expected: int,
) -> None:
    client = client_of(Settings(data_dir=tmp_path, max_queued=1, poll_seconds=60))
    service = client.app.state.service  # type: ignore[attr-defined]
    for number in range(workers):
        service.store.register_worker(f"w{number}", {"name": f"cpu:{number}"})
    for ends in (True, False, False):
        answer = client.post("/generate", data={"prompt": "x"}, files={"image": ("a", picture)})
        if ends:
            claim = service.store.claim("w0")
            durations = {"denoising": seconds}
            service.store.finish(claim.job.id, claim.token, status=JobStatus.SUCCEEDED, durations=durations)
            service.waiting_times.run_times.apply(service.store.events_after(seq=0, limit=100))
    assert (answer.status_code, answer.headers["retry-after"]) == (429, str(expected))


def test_retry_after_of_a_keys_full_queue_is_when_its_first_job_is_likely_to_start(
    client_of: Callable[..., TestClient], tmp_path: Path, picture: bytes
) -> None:
    keys = {"studio": "ff_" + "a" * 40, "other": "ff_" + "b" * 40}
    given = tuple(keys.values())
    client = client_of(Settings(data_dir=tmp_path, api_keys=given, max_queued_per_key=1, poll_seconds=60))
    service = client.app.state.service  # type: ignore[attr-defined]
    service.store.register_worker("w", {"name": "cpu"})
    event = Event(
        1, "x", "finished", 0.0, {"outcome": "succeeded", "model": "m", "durations": {"loading": 10}}
    )
    service.waiting_times.run_times.apply([event])
    for name in ("other", "studio", "studio"):
        headers = {"Authorization": f"Bearer {keys[name]}"}
        form = {"data": {"prompt": "x"}, "files": {"image": ("a", picture)}}
        answer = client.post("/generate", headers=headers, **form)
    assert (answer.status_code, answer.headers["retry-after"]) == (429, "20")


def test_a_plan_needs_no_image_and_queues_nothing(client: TestClient, app_store: JobStore) -> None:
    device = {
        "name": "cpu",
        "kind": "cpu",
        "free_bytes": 2**36,
        "total_bytes": 2**36,
        "capacity_bytes": 2**36,
    }
    app_store.register_worker("w", device)
    body = client.post("/plan", json={"width": 512, "height": 512, "num_frames": 17}).json()
    assert body["plan"]["strategy"] == "batched"
    assert [rung["frames_per_chunk"] for rung in body["rungs"]] == [3, 2, 1]
    assert body["rungs"][0]["predicted_peak_bytes"] > body["rungs"][-1]["predicted_peak_bytes"]
    assert app_store.page() == []


def test_chunks_that_would_hold_the_whole_video_are_refused_on_every_route(
    client: TestClient, picture: bytes, submit: Post, app_store: JobStore
) -> None:
    wanted = {"decode_strategy": "chunked", "frames_per_chunk": 99}
    job = submit(num_frames=17)
    app_store.cancel(job["id"])
    form = {"prompt": "x", "num_frames": "17", **wanted}
    answers = [
        client.post("/generate", data=form, files={"image": ("photo.jpg", picture)}),
        client.post("/plan", json={"num_frames": 17, **wanted}),
        client.post(f"/jobs/{job['id']}/redecode", json=wanted),
    ]
    for answer in answers:
        assert answer.status_code == 422, answer.text
        assert answer.json()["code"] == "strategy_not_possible"
        assert "chunks of 99" in answer.json()["detail"]
        assert "fewer than 3" in answer.json()["detail"]


def test_unicode_prompts_survive(submit: Post) -> None:
    prompt = "eine Möwe 🐦 飛ぶ \u202e"
    assert json.loads(json.dumps(submit(prompt=prompt)))["request"]["prompt"] == prompt


LEARNED = {
    "margins": {
        f"ltx/float32/{strategy}": {
            "observations": 9,
            "workspace_ratio": 0.1,
            "fragmentation_ratio": 0.0,
            "outside_bytes": 0,
            "too_little_ratio": None,
            "expected_ratio": 1.1,
            "upper_ratio": 1.2,
            "expected_constant_bytes": 0,
            "upper_constant_bytes": 0,
        }
        for strategy in ("batched", "chunked", "per_frame")
    },
    "speeds": {
        "ltx/float32/0": {
            "work_seconds": 0.01,
            "step_seconds": 1.0,
            "border_seconds": 0.0,
            "corrections": {},
            "observations": 9,
        }
    },
}


@pytest.fixture
def tight(app_store: JobStore) -> None:
    """A device with 50 MiB for a decode of 48 MiB of tensors in one call, 32 in twos and 16 in ones."""
    free_bytes = Settings().reserve_bytes + 50 * MIB
    device = {"name": "cpu", "kind": "cpu", "free_bytes": free_bytes, "total_bytes": 2**40}
    app_store.register_worker("w", {**device, "learned": LEARNED})


SMALL = {"model": "tiny", "width": 256, "height": 256, "num_frames": 17}


@pytest.mark.usefixtures("tight")
def test_a_plan_says_why_each_way_is_taken_or_not_how_long_it_takes_and_what_would_fit(
    client: TestClient,
) -> None:
    body = client.post("/plan", json=SMALL).json()
    ways = [rung for rung in body["rungs"] if rung["tiles"] == {"rows": 1, "columns": 1}]
    told = [(rung["frames_per_chunk"], rung["fits_now"], rung["chosen"]) for rung in ways]
    assert told == [(3, False, False), (2, True, True), (1, True, False)]
    assert [rung["why"] for rung in ways] == [
        "needs up to 58 MiB; 50 MiB are available",
        "the fastest that fits",
        "takes 5.9 s; the chosen option 4.9 s",
    ]
    assert body["plan"]["predicted_seconds"] == pytest.approx(4.92)
    assert body["largest"] == {"frames": 17, "height": 384, "width": 384}
    assert body["eta_seconds"] is None, "nothing ran yet"


@pytest.mark.usefixtures("tight")
def test_the_expected_end_counts_the_jobs_before_and_the_predicted_decode(
    client: TestClient, app_store: JobStore, submit: Post
) -> None:
    first = submit(**SMALL)
    claim = app_store.claim("w", models=None, loaded_model=None, capacity_bytes=None, lease_seconds=60)
    assert claim is not None
    durations = {"denoising": 10.0, "decoding": 2.0}
    app_store.finish(first["id"], claim.token, status=JobStatus.SUCCEEDED, durations=durations)
    run_times = client.app.state.service.waiting_times.run_times  # type: ignore[attr-defined]
    run_times.apply(app_store.events_after(seq=0, limit=100))
    second = submit(**SMALL)
    eta = client.post("/plan", json=SMALL).json()["eta_seconds"]
    assert eta == pytest.approx(12.0 + 10.0 + 4.9, abs=0.1)

    claim = app_store.claim("w", models=None, loaded_model=None, capacity_bytes=None, lease_seconds=60)
    assert claim is not None
    assert claim.job.id == second["id"]
    app_store.progress(claim.job.id, claim.token, stage=Stage.DENOISING, progress=0.75)
    third = submit(**SMALL)["eta_seconds"]
    left = 0.25 * (10.0 + 4.9)
    assert third == pytest.approx(left + 10.0 + 4.9, abs=0.1), "of the job that runs, what is left counts"


@pytest.mark.usefixtures("tight")
def test_no_time_is_promised_while_every_device_is_paused(
    client: TestClient, app_store: JobStore, submit: Post
) -> None:
    submit(**SMALL)
    claim = app_store.claim("w", models=None, loaded_model=None, capacity_bytes=None, lease_seconds=60)
    assert claim is not None
    done = {"status": JobStatus.SUCCEEDED, "durations": {"denoising": 10.0, "decoding": 2.0}}
    app_store.finish(claim.job.id, claim.token, **done)
    run_times = client.app.state.service.waiting_times.run_times  # type: ignore[attr-defined]
    run_times.apply(app_store.events_after(seq=0, limit=100))
    queued = submit(**SMALL)
    (worker,) = client.get("/devices").json()["devices"]
    for action, promised in (("pause", False), ("resume", True)):
        client.post(f"/devices/{worker['worker_id']}/{action}").raise_for_status()
        planned = client.post("/plan", json=SMALL).json()["eta_seconds"]
        shown = client.get(f"/jobs/{queued['id']}").json()["eta_seconds"]
        assert [planned is not None, shown is not None] == [promised, promised]


@pytest.mark.parametrize("free_in", [[0.0], [7.0, 0.0], [3.0, 50.0, 0.5], [0.0, 0.0, 4.0, 4.0]])
@pytest.mark.parametrize("position", [1, 2, 5, 17, 1000])
def test_the_turn_in_a_long_queue_is_that_of_going_through_it(position: int, free_in: list[float]) -> None:
    ahead = list(free_in)
    for _ in range(position - 1):
        ahead[ahead.index(min(ahead))] += 4.0
    assert seconds_until_turn(position, free_in, 4.0) == pytest.approx(min(ahead))


@pytest.mark.usefixtures("tight")
def test_a_plan_of_a_long_clip_takes_few_estimates_and_at_most_one_look_at_the_workers(
    client: TestClient, app_store: JobStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    counted = {"estimates": 0, "looks": 0}
    estimate, workers = MemoryProfile.estimate_cut, app_store.workers

    def count_estimate(*args: Any, **kwargs: Any) -> Any:
        counted["estimates"] += 1
        return estimate(*args, **kwargs)

    def count_look(**kwargs: Any) -> Any:
        counted["looks"] += 1
        return workers(**kwargs)

    monkeypatch.setattr(MemoryProfile, "estimate_cut", count_estimate)
    monkeypatch.setattr(app_store, "workers", count_look)
    assert client.post("/plan", json={**SMALL, "num_frames": 257}).status_code == 200
    assert 0 < counted["estimates"] < 400  # some microseconds each
    assert counted["looks"] <= 1
