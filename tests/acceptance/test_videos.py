"""The videos of one service: a photo moves as asked, frames and speed are those asked for, a seed repeats its
bytes, and an approximate decode is labelled.

The photo moves in a newcomer's first minute: no GPU, no download.
"""

import io
from fractions import Fraction
from functools import partial
from pathlib import Path

import av
import numpy as np
from PIL import Image, ImageOps
from running_service import RunningService
from waiting import wait_for

PHOTO = Path(__file__).parents[2] / "app" / "assets" / "demo.jpg"
PAN_PX = 32
VIDEO = {"width": 256, "height": 256, "num_frames": 33, "num_inference_steps": 1, "seed": 5}


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


def test_an_approximate_decode_is_used_where_asked_for_and_labelled_everywhere(
    shared_service: RunningService,
) -> None:
    service = shared_service
    asked_for = {"reason": "requested", "strategy": "approximate_tiled"}
    plans = partial(service.counted, "framefit_decode_strategy_total", **asked_for)
    before = plans()
    asked = {"decode_strategy": "approximate_tiled", "exact_only": False}
    job_id = service.submit(**{**VIDEO, "num_frames": 9}, **asked)["id"]
    decode = service.finished(job_id)["decode"]
    assert (decode["strategy"], decode["exact"]) == ("approximate_tiled", False)
    assert decode["tiles"]["rows"] > 1
    assert isinstance(decode["seam_score"], float)
    (planned,) = [event for event in service.events(job_id) if event.kind == "plan"]
    assert planned.data["exact"] is False
    wait_for(lambda: plans() == before + 1, 20)
    wait_for(lambda: service.metric("framefit_decode_seam_score_count"), 20)


def test_a_video_has_exactly_the_frames_size_and_speed_asked_for(shared_service: RunningService) -> None:
    fields = {"width": 192, "height": 128, "num_frames": 17, "num_inference_steps": 1}
    job_id = shared_service.submit(**fields, fps="23.976")["id"]
    shared_service.finished(job_id)
    answer = shared_service.http.get(f"/jobs/{job_id}/video").raise_for_status()
    assert answer.headers["content-type"] == "video/mp4"
    with av.open(io.BytesIO(answer.content)) as file:
        stream = file.streams.video[0]
        frames = [frame.to_ndarray(format="rgb24") for frame in file.decode(stream)]
        assert (stream.codec_context.name, stream.codec_context.pix_fmt) == ("h264", "yuv420p")
        assert stream.average_rate == Fraction(24000, 1001)
    assert len(frames) == 17
    assert {frame.shape for frame in frames} == {(128, 192, 3)}
    assert answer.content.find(b"moov") < answer.content.find(b"mdat")


def test_the_same_seed_gives_the_same_bytes(shared_service: RunningService) -> None:
    first, second = (shared_service.submit(**VIDEO)["id"] for _ in range(2))
    videos = []
    for job_id in (first, second):
        shared_service.finished(job_id)
        videos.append(shared_service.http.get(f"/jobs/{job_id}/video").raise_for_status().content)
    assert videos[0] == videos[1]
