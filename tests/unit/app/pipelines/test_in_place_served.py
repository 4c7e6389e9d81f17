"""Pipelines that need real frames inside their call, through the service: their own frames come out.

They decode in place, planned for the memory that is free. Each runs in three budgets: so large that a call is
decoded at once, a little smaller, and the smallest that is not refused.
"""

from __future__ import annotations

import inspect
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import av
import diffusers
import numpy as np
import pytest
import torch
from in_place_served import (
    CASES,
    SEED,
    finished,
    history,
    in_least_memory,
    picture,
    served_in_place,
    stand_in_checker,
)
from PIL import Image
from served_model import ServedModel

from adaptive.pipelines.recorded_call import RecordedDecode
from app.worker.job import run
from app.worker.job.in_place import InPlaceDecodes
from app.worker.job.own_frames import OwnFrames

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*deprecated", "ignore:__array__ implementation", "ignore:TF32 acceleration"
)
COSMOS = sorted(name for name in CASES if name.startswith("Cosmos"))


@pytest.fixture
def checker(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    with stand_in_checker(monkeypatch) as found:
        yield found


def untouched(folder: Path, pipeline: str) -> tuple[np.ndarray, list[torch.Tensor]]:
    """The pipeline's frames alone, asked in its own words: `[F, H, W, 3]` in 0..1; and what it decoded."""
    _, side, frames, call, _ = CASES[pipeline]
    pipe = getattr(diffusers, pipeline).from_pretrained(folder / "model")
    pipe.set_progress_bar_config(disable=True)
    pipe.vae.use_framewise_decoding = False  # it would blend tiles of a few frames, which is not exact
    decode, decoded = pipe.vae.decode, []

    def recorded(*args: Any, **kwargs: Any) -> Any:
        result = decode(*args, **kwargs)
        decoded.append(result[0])
        return result

    pipe.vae.decode = recorded
    image = Image.open(io.BytesIO(picture())).resize((side, side), Image.Resampling.LANCZOS)
    asked: dict[str, Any] = {"num_inference_steps": 3, "output_type": "np", "image": image, "fps": 8}
    asked["guidance_scale"] = 2.0 if pipeline.startswith(("Chrono", "Cosmos")) else 1.0
    for line in call.splitlines():
        name, value = line.split(" = ")
        asked[name] = value == "true" if value == "true" else int(value)
    if pipeline == "HeliosPyramidPipeline":
        asked["pyramid_num_inference_steps_list"] = [asked.pop("num_inference_steps")] * 3
    if pipeline.startswith("LTX"):
        asked |= {"cond_image": asked.pop("image"), "seed": SEED, "frame_rate": 8}
    if "fps" not in inspect.signature(pipe.__call__).parameters:
        asked.pop("fps")
    torch.manual_seed(SEED)
    generator = torch.Generator().manual_seed(SEED)
    made = pipe(prompt="a bear", height=side, width=side, num_frames=frames, generator=generator, **asked)
    return made.frames[0], decoded


class Taken(OwnFrames):
    """Remembers what the pipeline returned in the job."""

    last: Any = None

    def __init__(self, frames: Any) -> None:
        Taken.last = frames[0] if isinstance(frames, np.ndarray) else frames[0].permute(0, 2, 3, 1).numpy()
        super().__init__(frames)


@pytest.mark.parametrize("pipeline", sorted(CASES))
@pytest.mark.usefixtures("checker")
def test_a_pipeline_that_needs_real_frames_makes_its_own_in_three_budgets(
    pipeline: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run, "OwnFrames", Taken)
    decode, decoded = InPlaceDecodes.decode, []

    def recorded(decodes: InPlaceDecodes, call: RecordedDecode) -> torch.Tensor:
        decoded.append(decode(decodes, call))
        return decoded[-1]

    monkeypatch.setattr(InPlaceDecodes, "decode", recorded)
    with torch.backends.mkldnn.flags(enabled=False), served_in_place(tmp_path, pipeline) as served:
        expected = untouched(tmp_path, pipeline)
        whole = finished(served)
        assert whole["status"] == "succeeded", whole["error"]
        check(served, whole, expected, pipeline, decoded)
        assert whole["decode"]["strategy"] == "batched"
        chunked = in_least_memory(served, decode_strategy="chunked", frames_per_chunk=2)
        check(served, chunked, expected, pipeline, decoded)
        plans = [event.data for event in history(served, chunked) if event.kind == "plan"]
        assert "chunked" in {plan["strategy"] for plan in plans}
        least = in_least_memory(served)
        check(served, least, expected, pipeline, decoded)
        assert least["decode"]["strategy"] == "per_frame"
        budgets = [job["request"]["memory_budget_bytes"] for job in (chunked, least)]
        assert budgets[1] < budgets[0]


def check(
    served: ServedModel,
    job: dict[str, Any],
    own: tuple[np.ndarray, list[torch.Tensor]],
    pipeline: str,
    decoded: list[torch.Tensor],
) -> None:
    """The job made those frames exactly, its video shows them, and it says how."""
    decodes, (expected, own_decodes) = CASES[pipeline][4], own
    assert job["status"] == "succeeded", job["error"]
    away = np.abs(Taken.last - expected)
    if pipeline in COSMOS:  # it cuts the frames off to whole numbers for its checker
        assert away.max() <= 1 / 255 + 1e-6
        assert (away > 1e-6).mean() < 0.01
    else:
        assert away.max() <= 1e-5
    assert len(own_decodes) == decodes
    for mine, theirs in zip(decoded[-decodes:], own_decodes, strict=True):
        assert (mine - theirs).abs().max() <= 1e-5
    assert job["result"]["frames"] == len(expected)
    assert job["decode"]["decodes"] == decodes
    assert job["decode"]["exact"] is True
    assert job["resumable"] is False
    assert pipeline in job["not_resumable_because"]
    assert job["denoise"]["resumable"] is False
    assert "redecode" not in job["links"]
    with av.open(io.BytesIO(served.http.get(job["links"]["video"]).content)) as file:
        shown = [frame.to_ndarray(format="rgb24") for frame in file.decode(video=0)]
    assert len(shown) == len(expected)
    weights = np.array([0.2126, 0.7152, 0.0722])  # colour is kept at half the resolution, luma is not
    for frame, wanted in zip(shown, expected, strict=True):
        assert np.abs(frame @ weights - wanted @ weights * 255).mean() < 8
    last = Image.open(io.BytesIO(served.http.get(job["links"]["last_frame"]).content))
    assert np.abs(np.asarray(last).astype(int) - (expected[-1] * 255).round()).max() <= 1
    told = history(served, job)
    done = [event.data["progress"] for event in told if event.kind in ("stage", "progress")]
    assert done == sorted(done)
    assert [event.data["resumable"] for event in told if event.kind == "not_resumable"] == [False]
    assert sum(event.kind == "plan" for event in told) == decodes
