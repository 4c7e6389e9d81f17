"""Whatever bytes come in, the answer is a refusal with a code, never a crash."""

import io
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import hostile
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from pydantic import ValidationError
from starlette.testclient import TestClient

from app.api.problems import Problem, problem_of
from app.api.requests.bodies import parse_body
from app.api.requests.job_spec import job_spec
from app.artifacts.pictures import is_key
from app.config import Settings
from app.media.images import ImageLimits, ImageRejected, check_image, open_image
from app.models.entries import load_models

MODELS = load_models(Settings())
ROOT = Path(__file__).parents[4]
LIMITS = ImageLimits(max_pixels=1_000_000, max_side=4096)
EXAMPLES = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])


def encoded(kind: str) -> bytes:
    file = io.BytesIO()
    Image.linear_gradient("L").resize((48, 40)).convert("RGB").save(file, kind)
    return file.getvalue()


PICTURES = [encoded(kind) for kind in ("JPEG", "PNG", "WEBP")]


@EXAMPLES
@given(
    picture=st.sampled_from(PICTURES),
    edits=st.lists(st.tuples(st.integers(0, 2000), st.binary(max_size=6)), max_size=8),
    cut=st.integers(0, 2000),
)
def test_a_damaged_picture_is_taken_or_refused_alike_by_check_and_by_open(
    picture: bytes, edits: list[tuple[int, bytes]], cut: int
) -> None:
    data = bytearray(picture)
    for place, change in edits:
        data[place % len(data) : place % len(data) + len(change)] = change
    damaged = bytes(data[: max(1, len(data) - cut)]) if cut % 3 == 0 else bytes(data)
    try:
        check_image(damaged, LIMITS)
    except ImageRejected:
        return
    assert open_image(damaged, LIMITS).mode == "RGB"


HEADER = b'--b\r\nContent-Disposition: form-data; name="prompt"\r\n\r\nx\r\n--b--\r\n'


@EXAMPLES
@given(
    body=st.one_of(
        st.binary(max_size=300),
        st.lists(
            st.sampled_from([b"--b", b"\r\n", b"--", b"name=", b'"', b";", HEADER, b":"]), max_size=30
        ).map(b"".join),
    ),
    kind=st.sampled_from(
        [
            "application/json",
            "multipart/form-data; boundary=b",
            'multipart/form-data; boundary="',
            "multipart/form-data",
            "multipart/form-data; boundary*=utf-8''b",
            "",
            "x" * 5000,
            "multipart/form-data; boundary=" + "b" * 300,
        ]
    ),
)
def test_a_body_is_parsed_or_refused(body: bytes, kind: str) -> None:
    try:
        answer = parse_body(kind, body)
    except Problem as problem:
        status = problem.status
    else:
        status = 200 if isinstance(answer.fields, dict) else 500
    assert status < 500


ANY_CHARACTER = st.characters(exclude_categories=())  # half surrogate pairs, too: JSON can spell them
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(ANY_CHARACTER, max_size=40),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)
FIELDS = [
    "prompt",
    "model",
    "width",
    "height",
    "num_frames",
    "fps",
    "seed",
    "priority",
    "guidance_scale",
    "webhook_url",
]


@EXAMPLES
@given(
    fields=st.dictionaries(
        st.sampled_from([*FIELDS, "decode_strategy", "exact_only", "other", "\ud800"]), JSON, max_size=6
    )
)
def test_fields_make_a_job_or_a_problem(fields: dict[str, Any]) -> None:
    try:
        answer: Any = job_spec({"prompt": "x", **fields}, MODELS).model in MODELS
    except (Problem, ValidationError) as error:
        problem = problem_of(error)
        answer = problem and problem.response().body
    assert answer


@pytest.mark.parametrize("count", [10, 2000])
def test_many_headers_do_no_harm(client: TestClient, count: int) -> None:
    assert client.get("/healthz", headers={f"x-{n}": "v" * 50 for n in range(count)}).status_code == 200


@pytest.fixture(scope="module")
def answers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[int, str, float]]:
    """What a process with little memory answers to each case: status, code, processor seconds."""
    command = [sys.executable, str(Path(hostile.__file__)), str(tmp_path_factory.mktemp("hostile"))]
    done = subprocess.run(
        command,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        timeout=300,
        check=True,
    )
    found: dict[str, tuple[int, str, float]] = json.loads(done.stdout)
    return found


@pytest.mark.parametrize("name", hostile.CASES)
def test_what_wants_to_hurt_is_refused_in_bounded_memory_and_time(
    answers: dict[str, tuple[int, str, float]], name: str
) -> None:
    _, status, code = hostile.CASES[name]
    assert answers[name][:2] == [status, code]
    assert answers[name][2] < 5, "seconds of a processor"


@pytest.mark.parametrize(
    "name",
    ["../../../etc/passwd", "/etc/passwd", "..\\..\\x", "a\x00b", "\u202egpj.exe", "n" * 5000, "CON", ""],
)
def test_the_name_of_a_file_means_nothing(client: TestClient, settings: Settings, name: str) -> None:
    kind, body = hostile.form(hostile.saved("PNG"), name)
    before = sorted(settings.data_dir.rglob("*"))
    answer = client.post("/generate", content=body, headers={"Content-Type": kind})
    if answer.status_code != 202:
        assert answer.json()["code"] == "bad_multipart"
    made = [path for path in sorted(settings.data_dir.rglob("*")) if path not in before]
    assert all(path.is_relative_to(settings.data_dir / "pictures") for path in made)
    assert all(is_key(path.name) for path in made if path.is_file())


@pytest.mark.parametrize(
    "prompt",
    [
        "\u05e9\u05dc\u05d5\u05dd",
        "\U0001f3ac" * 1000,
        "a\u0300" * 500,
        "\u202eevil",
        "a\x00b",
        "<script>",
        "'; drop table jobs",
    ],
)
def test_any_text_is_a_prompt_and_comes_back_as_it_was(client: TestClient, prompt: str) -> None:
    kind, body = hostile.form(hostile.saved("PNG"), prompt=prompt, model="tiny")
    answer = client.post("/generate", content=body, headers={"Content-Type": kind})
    assert answer.status_code == 202
    assert client.get(f"/jobs/{answer.json()['id']}").json()["request"]["prompt"] == prompt


def test_a_picture_that_is_also_a_page_is_served_as_a_picture_only(client: TestClient) -> None:
    both = hostile.saved("PNG") + b"<html><script>alert(1)</script></html>PK\x05\x06" + bytes(18)
    kind, body = hostile.form(both)
    job = client.post("/generate", content=body, headers={"Content-Type": kind}).json()
    served = client.get(f"/jobs/{job['id']}/image")
    assert served.headers["content-type"] == "image/png"
    assert served.headers["x-content-type-options"] == "nosniff"
    assert served.headers["content-security-policy"].startswith("default-src 'none'")
