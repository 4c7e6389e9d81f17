"""The video's shape where the request leaves it out, and what the job tells of a crop."""

import base64
import io
import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from starlette.testclient import TestClient

from app.config import Settings
from app.store import JobStore

Job = dict[str, Any]
PORTRAIT = (108, 192)


def photo(size: tuple[int, int] = PORTRAIT, turned: int = 1, kind: str = "JPEG") -> bytes:
    exif = Image.Exif()
    exif[0x0112] = turned
    file = io.BytesIO()
    Image.linear_gradient("L").resize(size).convert("RGB").save(file, kind, exif=exif)
    return file.getvalue()


def posted(client: TestClient, data: bytes, path: str = "/generate", **fields: str) -> Job:
    answer = client.post(path, data={"prompt": "pan left", **fields}, files={"image": data})
    body: Job = answer.json()
    assert answer.status_code in (200, 202), body
    return body


def shape(job: Job) -> tuple[int, int]:
    return job["request"]["width"], job["request"]["height"]


PHOTOS = [
    (PORTRAIT, 1, (192, 320)),
    (PORTRAIT[::-1], 1, (320, 192)),
    (PORTRAIT[::-1], 6, (192, 320)),
    (PORTRAIT[::-1], 8, (192, 320)),
    (PORTRAIT, 3, (192, 320)),
    ((64, 64), 5, (256, 256)),
    ((1000, 30), 1, (512, 128)),
]
GIVEN: list[tuple[dict[str, str], tuple[int, int]]] = [
    ({"width": "192"}, (192, 352)),
    ({"height": "320"}, (192, 320)),
    ({"width": "256", "height": "256"}, (256, 256)),
    ({"width": "", "height": ""}, (192, 320)),
    ({"model": "ltx-video"}, (448, 800)),
    ({"model": "ltx-video", "width": "512"}, (512, 896)),
    ({"model": "wan21-i2v-480p"}, (480, 832)),
]


def test_the_shape_follows_the_upright_photo(client: TestClient) -> None:
    for (size, turned, expected), kind in itertools.product(PHOTOS, ("JPEG", "PNG", "WEBP")):
        data = photo(size, turned, kind)
        job = posted(client, data)
        assert (kind, size, turned, shape(job)) == (kind, size, turned, expected)
        assert shape(posted(client, data, "/plan")) == expected
        upright = size if turned < 5 else size[::-1]
        told = job["pictures"]["image"]
        assert (told["width"], told["height"]) == upright
        assert client.get(f"/jobs/{job['id']}").json()["pictures"] == job["pictures"]


def test_a_side_that_is_given_stays_and_the_other_follows(client: TestClient) -> None:
    for fields, expected in GIVEN:
        planned = posted(client, photo(), "/plan", **fields)
        assert (fields, shape(planned)) == (fields, expected)
        size = "{}x{}".format(*PORTRAIT)
        by_size = client.post("/plan", json={**fields, "prompt": "pan left", "image_size": size}).json()
        assert by_size["request"] == planned["request"]
        assert by_size["pictures"] == planned["pictures"]
        assert shape(posted(client, photo(), **fields)) == expected


def test_a_followed_side_beyond_the_models_limit_is_refused_as_a_given_one(client: TestClient) -> None:
    fields = {"prompt": "pan left", "model": "photo-pan", "width": "768"}
    answer = client.post("/generate", data=fields, files={"image": photo()})
    assert (answer.status_code, answer.json()["code"]) == (422, "over_model_limit")
    assert client.get("/jobs").json()["jobs"] == []


def test_a_large_photo_gives_512x320_upright_for_an_upright_photo(client: TestClient) -> None:
    for size, turned, expected in (
        ((900, 600), 1, (512, 320)),
        ((600, 600), 1, (512, 320)),
        ((900, 600), 6, (320, 512)),
        ((500, 400), 1, (448, 352)),
    ):
        job = posted(client, photo(size, turned))
        assert (size, turned, job["model"], shape(job)) == (size, turned, "photo-pan", expected)
        assert job["request"]["num_frames"] == 33
    whole = posted(client, photo((900, 600)), fit="contain")
    assert shape(whole) == (480, 320), "bars would be no part of the photo"


@pytest.mark.parametrize("model", [{}, {"model": "photo-pan"}])
@pytest.mark.parametrize("path", ["/generate", "/plan"])
def test_what_photo_pan_cannot_make_is_refused_with_the_largest_and_never_made_of_noise(
    client: TestClient, model: dict[str, str], path: str
) -> None:
    def refused(**fields: str) -> Job:
        form = {"prompt": "pan left", **model, **fields}
        answer = client.post(path, data=form, files={"image": photo((2000, 1500))})
        assert answer.status_code == 422
        body: Job = answer.json()
        return body

    large = refused(width="1920", height="1088")
    assert (large["code"], large["width"], large["height"]) == ("over_model_limit", 1024, 576)
    assert "at most 589,824, for example 1024x576" in large["detail"]
    assert posted(client, photo(), path, **model, width="1024", height="576")
    tall = refused(width="704", height="1024")
    assert tall["width"] * tall["height"] <= tall["limit"] == 589_824
    assert tall["width"] < tall["height"]
    long = refused(num_frames="97")
    assert (long["code"], long["limit"]) == ("over_model_limit", 65)
    assert refused(prompt="spin around")["code"] == "beyond_model"
    assert {job["model"] for job in client.get("/jobs").json()["jobs"]} <= {"photo-pan"}


def test_a_model_of_certain_shapes_gets_the_one_nearest_to_the_photo(
    client_of: Callable[..., TestClient], tmp_path: Path
) -> None:
    models = tmp_path / "models.toml"
    models.write_text('[models.tiny]\nshapes = ["256x256x25", "192x320x9", "192x320x17", "320x192x25"]\n')
    client = client_of(Settings(data_dir=tmp_path, models_file=models, model="tiny"))
    for fields, expected in (
        ({}, (192, 320, 17)),
        ({"num_frames": "9"}, (192, 320, 9)),
        ({"num_frames": "25"}, (256, 256, 25)),
        ({"width": "320"}, (320, 192, 25)),
    ):
        request = posted(client, photo(), "/plan", **fields)["request"]
        assert (request["width"], request["height"], request["num_frames"]) == expected
    refused = client.post("/plan", json={"height": 512, "image_size": "108x192"}).json()
    assert refused["code"] == "shape_not_taken"
    assert "192x320x17" in refused["detail"]


def test_fit_and_gravity_are_kept_and_the_job_tells_what_is_cut(
    client: TestClient, app_store: JobStore
) -> None:
    sides = {"width": "256", "height": "256"}
    cut = posted(client, photo(), **sides, gravity="north")
    assert cut["pictures"]["image"]["cut"] == {"left": 0, "top": 0, "right": 0, "bottom": 84}
    assert cut["pictures"]["image"]["cut_share"] == pytest.approx(0.4375)
    assert "84 pixels at the bottom" in cut["pictures"]["image"]["detail"]
    whole = posted(client, photo(), **sides, fit="contain")
    assert whole["pictures"]["image"]["bars"] == {"left": 56, "top": 0, "right": 56, "bottom": 0}
    assert not any(whole["pictures"]["image"]["cut"].values())
    stretched = posted(client, photo(), **sides, fit="stretch")
    assert stretched["pictures"]["image"]["stretch"] == pytest.approx(16 / 9, abs=1e-3)
    stored = [app_store.get(job["id"]).spec for job in (cut, whole, stretched)]
    assert [(spec.fit, spec.gravity) for spec in stored] == [
        ("cover", "north"),
        ("contain", "center"),
        ("stretch", "center"),
    ]
    assert {spec.image_size for spec in stored} == {"108x192"}


def test_other_words_are_refused(client: TestClient) -> None:
    for name, value in (("fit", "crop"), ("gravity", "up"), ("image_size", "big"), ("image_size", "0x5")):
        assert client.post("/plan", json={name: value}).json()["code"] == f"invalid_{name}"


def test_a_last_image_takes_the_shape_of_the_first_and_its_own_crop_is_told(
    client_of: Callable[..., TestClient], tmp_path: Path
) -> None:
    models = tmp_path / "models.toml"
    models.write_text('[models.tiny]\ninputs = ["last_image"]\n')
    client = client_of(Settings(data_dir=tmp_path, models_file=models, model="tiny"))
    answer = client.post(
        "/generate",
        data={"prompt": "the door opens"},
        files={"image": photo(), "last_image": photo((192, 108))},
    )
    job = answer.json()
    assert shape(job) == (192, 320)
    assert job["pictures"]["image"]["cut_share"] < 0.15
    assert job["pictures"]["last_image"]["cut_share"] > 0.6
    assert job["pictures"]["last_image"]["cut"]["left"] > 0


def test_a_batch_gives_each_job_the_shape_of_its_own_photo(client: TestClient) -> None:
    jobs = [
        {"image": f"data:image/jpeg;base64,{base64.b64encode(photo(size)).decode()}"}
        for size in (PORTRAIT, PORTRAIT[::-1], (64, 64))
    ]
    answer = client.post("/generate/batch", json={"prompt": "pan left", "jobs": jobs}).json()
    assert [shape(job) for job in answer["jobs"]] == [(192, 320), (320, 192), (256, 256)]


def test_openais_size_is_like_the_photo_if_it_is_absent_or_auto(client: TestClient) -> None:
    for size in (None, "", "auto", "256x256"):
        fields = {"prompt": "pan left"} | ({} if size is None else {"size": size})
        answer = client.post("/v1/videos", data=fields, files={"input_reference": photo()})
        assert answer.json()["size"] == ("256x256" if size == "256x256" else "192x320")


def test_a_replayed_request_is_the_same_although_its_sizes_are_measured(
    client: TestClient, app_store: JobStore
) -> None:
    headers = {"Idempotency-Key": "once"}
    answers = [
        client.post(
            "/generate",
            data={"prompt": "pan left", **more},
            files={"image": photo()},
            headers=headers,
        )
        for more in ({}, {"image_size": "5x5"})
    ]
    assert [answer.status_code for answer in answers] == [202, 202]
    assert answers[0].json()["id"] == answers[1].json()["id"]
    spec = app_store.get(answers[0].json()["id"]).spec
    assert spec.image_size == "108x192", "measured, whatever the client says"
    old = spec.model_copy(update={"image_size": None})
    assert old.fingerprint(b"x") == spec.fingerprint(b"x"), "as before sizes were measured"


def test_a_job_of_an_earlier_version_has_no_size_to_tell_of(client: TestClient, app_store: JobStore) -> None:
    from app.api.views import pictures_view

    job = app_store.get(posted(client, photo())["id"])
    earlier = job.spec.model_copy(update={"image_size": None})
    assert pictures_view(earlier) == {"image": None, "last_image": None}


def test_a_plan_without_a_photo_answers_for_the_models_own_shape(client: TestClient) -> None:
    answer = client.post("/plan", json={}).json()
    assert shape(answer) == (512, 320)
    assert answer["pictures"] == {"image": None, "last_image": None}
    broken = client.post("/plan", data={}, files={"image": b"no photo"})
    assert broken.json()["code"] == "not_an_image"
