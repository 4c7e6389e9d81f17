"""Frame rates are fractions everywhere: what names them, what JSON says, what is in the file."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import av
import numpy as np
import pytest
import reference_clip
from starlette.testclient import TestClient

from adaptive.types import VideoShape
from app.api.routes.openai import video_view
from app.config import ConfigError, Settings
from app.frame_rate import frame_rate, nearest_standard
from app.jobs import JobSpec
from app.media.audio import AudioSamples
from app.media.video import VideoWriter
from app.models.entries import load_models
from app.store import JobStore

FILM, NTSC = Fraction(24000, 1001), Fraction(30000, 1001)
RATES = (
    (24, Fraction(24)),
    ("24", Fraction(24)),
    (24.0, Fraction(24)),
    ("24.0", Fraction(24)),
    (23.976, FILM),
    ("23.976", FILM),
    ("23.98", FILM),
    (23.976023976023978, FILM),
    ("24000/1001", FILM),
    (" 24000/1001 ", FILM),
    ("48000/2002", FILM),
    (29.97, NTSC),
    ("30000/1001", NTSC),
    (59.94, Fraction(60000, 1001)),
    ("119.88", Fraction(120000, 1001)),
    ("14.985", Fraction(15000, 1001)),
    ("12.5", Fraction(25, 2)),
    (7.333333333333333, Fraction(22, 3)),
    ("22/3", Fraction(22, 3)),
    ("1", Fraction(1)),
    (120, Fraction(120)),
    (Fraction(25), Fraction(25)),
)


@pytest.mark.parametrize(("given", "rate"), RATES)
def test_a_rate_is_named_in_many_ways(given: object, rate: Fraction) -> None:
    assert frame_rate(given) == rate


@pytest.mark.parametrize(
    "given",
    [
        *("fast", "", "24/0", "24/000", "0", "-24", "121", "24000/1", "1/2", "1e400", "inf", "nan", "24:1"),
        *("24/1/1", "٢٤", "9" * 400, 10**400, 1e300, float("nan"), float("inf"), True, None, [24], 0, 121),
        *(0.5, "24000001/1000003"),
    ],
)
def test_what_is_no_rate_is_refused_with_examples(given: object) -> None:
    with pytest.raises(ValueError, match="24000/1001"):
        frame_rate(given)


@pytest.mark.parametrize(
    ("declared", "rate"),
    [
        (Fraction(19001, 317), Fraction(60000, 1001)),  # Matroska's nanoseconds
        (Fraction(1_000_000_000, 41_708_333), FILM),
        (Fraction(1_000_000_000, 33_333_333), Fraction(30)),
        (Fraction(30), Fraction(30)),
        (Fraction(25, 2), Fraction(25, 2)),
        (Fraction(359_400, 11_999), Fraction(359_400, 11_999)),  # a phone's: neither 30 nor 29.97
    ],
)
def test_a_containers_rounding_is_undone(declared: Fraction, rate: Fraction) -> None:
    assert nearest_standard(declared) == rate


@pytest.mark.parametrize(("given", "shown"), [(24, 24), ("23.976", "24000/1001"), (12.5, "25/2")])
def test_a_job_keeps_its_rate_as_a_fraction(
    make_spec: Callable[..., JobSpec], given: object, shown: int | str
) -> None:
    spec = make_spec(fps=given)
    assert spec.fps == frame_rate(given)
    assert json.loads(spec.model_dump_json())["fps"] == shown
    assert JobSpec.model_validate_json(spec.model_dump_json()) == spec


def test_old_requests_keep_their_fingerprint(make_spec: Callable[..., JobSpec]) -> None:
    """The digest that the version with whole rates made of this request."""
    expected = "c782d7aec3ce8e71fb519151f11eec35023da988d3696bb3dc7f55ecfc0ce036"
    assert make_spec().fingerprint(b"image") == expected
    assert make_spec(fps="12.0").fingerprint(b"image") == expected


@pytest.mark.parametrize("rate", ["23.976", "24000/1001", 23.976])
def test_a_request_may_ask_for_a_fraction(
    rate: object, client: TestClient, picture: bytes, app_store: JobStore
) -> None:
    fields = {"prompt": "x", "fps": rate, "num_frames": 25}
    job = client.post("/generate", data=fields, files={"image": ("a.jpg", picture)}).json()
    assert job["request"]["fps"] == "24000/1001"
    assert app_store.get(job["id"]).spec.fps == FILM
    assert client.post("/plan", json=fields).json()["request"]["fps"] == "24000/1001"
    assert video_view(app_store.get(job["id"]))["seconds"] == "1.043"


@pytest.mark.parametrize("rate", ["fast", 0, 121, "24/0", "1e9"])
def test_a_request_with_no_rate_is_refused(rate: object, client: TestClient) -> None:
    answer = client.post("/plan", json={"prompt": "x", "fps": rate})
    assert (answer.status_code, answer.json()["code"]) == (422, "invalid_fps")
    assert "24000/1001" in answer.json()["detail"]


def test_openais_seconds_count_with_the_fraction(
    client: TestClient, picture: bytes, app_store: JobStore
) -> None:
    files = {"input_reference": ("a.jpg", picture)}
    fields = {"prompt": "x", "model": "tiny", "seconds": "4", "fps": "30000/1001"}
    video = client.post("/v1/videos", data=fields, files=files).json()
    assert app_store.get(video["id"]).spec.num_frames == 121
    assert video["seconds"] == "4.037"
    refused = client.post("/v1/videos", data={**fields, "fps": "fast"}, files=files)
    assert refused.status_code == 422
    assert "24000/1001" in refused.json()["error"]["message"]


def test_a_models_default_may_be_a_fraction(tmp_path: Path) -> None:
    path = tmp_path / "models.toml"
    path.write_text('[models.ltx-video.defaults]\nfps = "24000/1001"\n')
    assert load_models(Settings(data_dir=tmp_path, models_file=path))["ltx-video"].defaults.fps == FILM
    path.write_text("[models.ltx-video.defaults]\nfps = 1001\n")
    with pytest.raises(ConfigError, match=r"models\.ltx-video\.defaults\.fps"):
        load_models(Settings(data_dir=tmp_path, models_file=path))


def test_a_pipeline_gets_a_number(make_spec: Callable[..., JobSpec]) -> None:
    from app.worker.pipeline_call import _arguments

    class Pipe:
        def __call__(self, image: Any, frame_rate: float, fps: int) -> None: ...

    for given, frame_rate_given, fps in ((24, 24, 24), ("24000/1001", 24000 / 1001, 24)):
        found = _arguments(Pipe(), make_spec(fps=given), {"image": SimpleNamespace()}, _cpu())  # type: ignore[dict-item]
        assert (found["frame_rate"], found["fps"]) == (frame_rate_given, fps)
        assert (type(found["frame_rate"]), type(found["fps"])) == (type(frame_rate_given), int)


def _cpu() -> Any:
    import torch

    return torch.device("cpu")


@pytest.mark.parametrize(
    "rate", [*(Fraction(each * 1000, 1001) for each in (24, 30, 60, 120)), Fraction(25, 2)]
)
def test_the_file_has_the_exact_rate_and_sound_of_its_length(rate: Fraction, tmp_path: Path) -> None:
    frames, path = 49, tmp_path / "video.mp4"
    sound = AudioSamples(np.zeros((1, 48_000 * 4), np.float32), 48_000)
    with VideoWriter(path, VideoShape(frames, 32, 32), rate, sound) as writer:
        writer.write(np.zeros((frames, 32, 32, 3), np.uint8))
        writer.finish()
    with av.open(str(path)) as file:
        video, audio = file.streams.video[0], file.streams.audio[0]
        assert video.average_rate == video.base_rate == rate
        assert video.duration * video.time_base == frames / rate
        assert abs(audio.duration * audio.time_base - frames / rate) <= Fraction(1, 1000)  # mp4 counts in ms
    if reference_clip.FFMPEG is not None:
        command = [
            "ffprobe",
            "-v",
            "error",
            "-select_streams",
            "v",
            "-show_streams",
            "-of",
            "json",
            str(path),
        ]
        stream = json.loads(subprocess.run(command, capture_output=True, check=True).stdout)["streams"][0]
        assert Fraction(stream["r_frame_rate"]) == Fraction(stream["avg_frame_rate"]) == rate
