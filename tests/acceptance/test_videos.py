"""The videos of one service: a photo moves as asked, frames and speed are those asked for, a seed repeats its
bytes, and an approximate decode is labelled.

The photo moves in a newcomer's first minute: no GPU, no download.
"""

import io
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Any

import av
import numpy as np
from PIL import Image
from running_service import RunningService
from waiting import wait_for

from app.pipelines.photo_pan.camera import boxes
from app.pipelines.photo_pan.prompt import motion_of
from app.pipelines.photo_pan.resampling import frames as photo_frames

PHOTO = Path(__file__).parents[2] / "app" / "assets" / "demo.jpg"
PAN_PX = 45  # in nine frames
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
    form = {"model": "photo-pan", "prompt": "pan left", "seed": "3", "num_frames": "9"}

    def accepted() -> dict[str, str] | None:
        answer = service.http.post("/generate", data=form, files={"image": PHOTO.read_bytes()})
        return None if answer.status_code == 503 else answer.raise_for_status().json()

    job = service.finished(wait_for(accepted, 120, service.log)["id"])
    assert job["decode"]["exact"] is True
    frames = frames_of(service.http.get(job["links"]["video"]).content)
    assert frames.shape == (9, 320, 512, 3)
    photo = Image.open(PHOTO).convert("RGB")
    way = boxes(photo.size, (512, 320), motion_of("pan left"), 9)
    for made, wanted in zip(frames, photo_frames(photo, way, (512, 320)), strict=True):
        assert psnr_db(made, np.asarray(wanted, float)) > 32, "nothing but the photo, in every frame"
    # The camera goes left, so the picture goes right.
    assert abs(shift_px(frames[0], frames[-1]) - PAN_PX) <= 3


def test_what_the_photo_model_cannot_make_is_refused_before_it_is_queued(
    shared_service: RunningService,
) -> None:
    def refused(**fields: str) -> dict[str, Any]:
        form = {"model": "photo-pan", "prompt": "pan left", **fields}
        answer = shared_service.http.post("/generate", data=form, files={"image": PHOTO.read_bytes()})
        assert answer.status_code == 422
        body: dict[str, Any] = answer.json()
        return body

    turned = refused(prompt="the camera orbits the cat")
    assert turned["code"] == "beyond_model"
    assert "orbits" in turned["detail"]
    large = refused(width="1920", height="1088")
    assert large["code"] == "over_model_limit"
    assert (large["width"], large["height"]) == (1024, 576)
    assert "1024x576" in large["detail"]
    long = refused(num_frames="97")
    assert (long["code"], long["limit"]) == ("over_model_limit", 65)


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
    wait_for(lambda: plans() == before + 1, 120)
    wait_for(lambda: service.metric("framefit_decode_seam_score_count"), 120)


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
