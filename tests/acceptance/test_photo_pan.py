"""A newcomer's first minute: a real photo in, a video of it out; no GPU, no download."""

import io
from pathlib import Path

import av
import numpy as np
from PIL import Image, ImageOps
from running_service import RunningService
from waiting import wait_for

PHOTO = Path(__file__).parents[2] / "app" / "assets" / "demo.jpg"
PAN_PX = 32


def frames_of(video: bytes) -> np.ndarray:
    with av.open(io.BytesIO(video)) as file:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in file.decode(video=0)]).astype(float)


def psnr_db(one: np.ndarray, other: np.ndarray) -> float:
    return float(10 * np.log10(255**2 / np.mean((one - other) ** 2)))


def shift_px(first: np.ndarray, last: np.ndarray) -> int:
    """Columns that the picture moved to the right, by the best correlation of what both frames show."""
    a, b = first.mean(-1), last.mean(-1)

    def likeness(shift: int) -> float:
        kept_a = a[:, : a.shape[1] - shift] if shift >= 0 else a[:, -shift:]
        kept_b = b[:, shift:] if shift >= 0 else b[:, : b.shape[1] + shift]
        return float(np.corrcoef(kept_a.ravel(), kept_b.ravel())[0, 1])

    return max(range(-64, 65), key=likeness)


def test_a_photo_moves_as_the_prompt_says(shared_service: RunningService) -> None:
    service = shared_service
    form = {"model": "photo-pan", "prompt": "pan left", "seed": "3"}

    def accepted() -> dict[str, str] | None:
        answer = service.http.post("/generate", data=form, files={"image": PHOTO.read_bytes()})
        return None if answer.status_code == 503 else answer.raise_for_status().json()

    job = service.finished(wait_for(accepted, 120, service.log)["id"])
    assert job["decode"]["exact"] is True
    frames = frames_of(service.http.get(job["links"]["video"]).content)
    assert frames.shape == (17, 256, 256, 3)
    photo = ImageOps.fit(ImageOps.exif_transpose(Image.open(PHOTO)).convert("RGB"), (256, 256))
    assert psnr_db(frames[0], np.asarray(photo, float)) > 24
    # The camera goes left, so the picture goes right.
    assert abs(shift_px(frames[0], frames[-1]) - PAN_PX) <= 4


def test_what_the_photo_model_cannot_make_is_refused_in_words(shared_service: RunningService) -> None:
    form = {"model": "photo-pan", "prompt": "zoom in slowly"}
    answer = shared_service.http.post("/generate", data=form, files={"image": PHOTO.read_bytes()})
    assert (answer.status_code, answer.json()["code"]) == (422, "beyond_model")
    assert "zoom" in answer.json()["detail"]
