"""Whatever bytes come in, the answer is a refusal with a code, never a crash."""

import io
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from pydantic import ValidationError
from starlette.testclient import TestClient

from app.api.bodies import take_apart
from app.api.problems import Problem, problem_of
from app.api.requests import job_spec
from app.config import Settings, load_models
from app.media import ImageLimits, ImageRejected, check_image, open_image

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
        ]
    ),
)
def test_a_body_is_taken_apart_or_refused(body: bytes, kind: str) -> None:
    try:
        answer = take_apart(kind, body)
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
    models = load_models(Settings())
    try:
        answer: Any = job_spec({"prompt": "x", **fields}, models).model in models
    except (Problem, ValidationError) as error:
        problem = problem_of(error)
        answer = problem and problem.response().body
    assert answer


@pytest.mark.parametrize("count", [10, 2000])
def test_many_headers_do_no_harm(client: TestClient, count: int) -> None:
    assert client.get("/healthz", headers={f"x-{n}": "v" * 50 for n in range(count)}).status_code == 200
