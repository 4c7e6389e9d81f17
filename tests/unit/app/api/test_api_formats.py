"""Every format of pictures is taken on every way in, and shown to browsers."""

import base64
import io
import sys
from pathlib import Path

import pytest
from PIL import Image
from starlette.testclient import TestClient

from app.store import JobStore

sys.path.insert(0, str(Path(__file__).parents[1] / "media"))

import picture_corpus

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "HEIC")
SHOWN_AS_UPLOADED = {"JPEG": "jpeg", "PNG": "png", "WEBP": "webp", "GIF": "gif", "BMP": "bmp", "AVIF": "avif"}


def file_of(kind: str) -> bytes:
    return picture_corpus.heic() if kind == "HEIC" else picture_corpus.saved(picture_corpus.picture(), kind)


@pytest.mark.parametrize("kind", FORMATS)
def test_a_picture_of_any_format_is_taken_on_every_way_in_and_shown(
    client: TestClient, app_store: JobStore, kind: str
) -> None:
    data = file_of(kind)
    url = f"data:image/x;base64,{base64.b64encode(data).decode()}"
    form = {"prompt": "x", "model": "tiny"}
    answers = [
        client.post("/generate", data=form, files={"image": ("a", data)}),
        client.post("/generate", json={**form, "image": url}),
        client.post("/v1/videos", data=form, files={"input_reference": ("a", data)}),
    ]
    assert [answer.is_success for answer in answers] == [True] * 3
    for answer in answers:
        job_id = answer.json()["id"]
        assert app_store.image(job_id) == data
    shown = client.get(f"/jobs/{job_id}/image")
    expected = SHOWN_AS_UPLOADED.get(kind)
    assert shown.headers["content-type"] == f"image/{expected or 'jpeg'}"
    assert (shown.content == data) == (expected is not None)
    assert Image.open(io.BytesIO(shown.content)).size == picture_corpus.SIZE
    original = client.get(f"/jobs/{job_id}/image?original=true")
    assert original.content == data
    assert original.headers["content-type"] == f"image/{kind.lower()}"


def test_a_picture_that_would_come_out_wrong_is_refused_by_name(client: TestClient) -> None:
    hdr = picture_corpus.heic(colr=(picture_corpus.nclx(9, 16, 9),))
    answer = client.post("/generate", data={"prompt": "x"}, files={"image": ("a.heic", hdr)})
    assert (answer.status_code, answer.json()["code"]) == (422, "unsupported_image")
    assert "HDR (PQ)" in answer.json()["detail"]
