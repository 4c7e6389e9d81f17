"""Pipelines that decode in place, served in this process with tiny weights.

Cosmos' safety checker, whose weights are not here, has a stand-in of its interface in `tests/stand_ins/`.
"""

from __future__ import annotations

import importlib
import io
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import tiny_pipelines
import torch
from PIL import Image
from served_model import ServedModel
from starlette.testclient import TestClient

from adaptive.memory.profile import MemoryProfile
from adaptive.memory.profile_trace import profile_of
from app.api import create_app
from app.config import Settings
from app.jobs import Event
from app.models.entries import ModelEntry, load_models
from app.pipelines import safety_checker
from app.store import open_store
from app.worker.engine import Engine

STAND_INS = Path(__file__).with_name("stand_ins")
SEED = 5
# For each pipeline: the entry's VAE, size, frames and `[call]`, and how often it decodes.
CASES: dict[str, tuple[str, int, int, str, int]] = {
    "ChronoEditPipeline": (
        "AutoencoderKLWan",
        32,
        17,
        "enable_temporal_reasoning = true\nnum_temporal_reasoning_steps = 3",
        2,
    ),
    "Cosmos2VideoToWorldPipeline": ("AutoencoderKLWan", 32, 17, "", 1),
    "Cosmos2_5_PredictBasePipeline": ("AutoencoderKLWan", 32, 17, "", 1),
    "CosmosVideoToWorldPipeline": ("AutoencoderKLCosmos", 32, 17, "", 1),
    "HeliosPipeline": ("AutoencoderKLWan", 32, 25, "num_latent_frames_per_chunk = 4", 2),
    "HeliosPyramidPipeline": ("AutoencoderKLWan", 64, 25, "num_latent_frames_per_chunk = 4", 2),
    "HunyuanVideoFramepackPipeline": ("AutoencoderKLHunyuanVideo", 32, 17, "latent_window_size = 3", 2),
    "LTXI2VLongMultiPromptPipeline": (
        "AutoencoderKLLTXVideo",
        96,
        33,
        "temporal_tile_size = 24\ntemporal_overlap = 8\ndecode_horizontal_tiles = 2\n"
        "decode_vertical_tiles = 1\ndecode_overlap = 1",
        2,
    ),
}
ENTRY = """
[models.mine]
pipeline = "{pipeline}"
source = "{source}"
dtype = "{dtype}"
vae_class = "{vae_class}"
size_multiple = 32
temporal_ratio = {ratio}
first_frame_alone = true

[models.mine.defaults]
width = {side}
height = {side}
num_frames = {frames}
fps = 8
num_inference_steps = 3
guidance_scale = {guidance}

[models.mine.limits]
max_pixels = 65536
max_frames = 128
max_steps = 10

[models.mine.call]
{call}
"""


@contextmanager
def stand_in_checker(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Yield the stand-in checker, put where diffusers has the real one, beside a part of torchvision."""
    monkeypatch.syspath_prepend(str(STAND_INS))
    found = importlib.import_module("cosmos_guardrail").CosmosSafetyChecker
    for name in ("cosmos_video2world", "cosmos2_video2world", "cosmos2_5_predict"):
        module = importlib.import_module(f"diffusers.pipelines.cosmos.pipeline_{name}")
        monkeypatch.setattr(module, "CosmosSafetyChecker", found)
    functional = SimpleNamespace(to_tensor=_to_tensor)
    torchvision = SimpleNamespace(transforms=SimpleNamespace(functional=functional))
    monkeypatch.setattr(module, "torchvision", torchvision, raising=False)
    is_installed = safety_checker.is_installed
    monkeypatch.setattr(
        safety_checker, "is_installed", lambda name: name == "torchvision" or is_installed(name)
    )
    yield found
    sys.modules.pop("cosmos_guardrail")


def _to_tensor(picture: Image.Image) -> torch.Tensor:
    return torch.from_numpy(np.array(picture)).permute(2, 0, 1).float() / 255


@contextmanager
def served_in_place(folder: Path, pipeline: str, dtype: str = "float32") -> Iterator[ServedModel]:
    vae_class, side, frames, call, _ = CASES[pipeline]
    source = folder / "model"
    tiny_pipelines.save(pipeline, source)
    profile = profile_of(tiny_pipelines.build(pipeline).vae, getattr(torch, dtype))
    file = folder / "models.toml"
    ratio = 8 if pipeline.startswith("LTX") else 4
    guidance = 2.0 if pipeline.startswith(("Chrono", "Cosmos")) else 1.0
    filled = {"pipeline": pipeline, "source": source, "vae_class": vae_class, "ratio": ratio, "side": side}
    file.write_text(ENTRY.format(**filled, dtype=dtype, frames=frames, call=call, guidance=guidance))
    settings = Settings(data_dir=folder / "data", models_file=file, reserve_bytes=0, calibrate_seconds=0)
    models = load_models(settings)

    def profile_of_entry(entry: ModelEntry) -> MemoryProfile | None:
        return profile if entry.name == "mine" else None

    with TestClient(create_app(settings, load_profile=profile_of_entry)) as http:
        yield ServedModel(settings, models, http, Engine(settings, "cpu"))


def picture() -> bytes:
    pixels = np.random.default_rng(3).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "png")
    return file.getvalue()


def finished(served: ServedModel, **fields: Any) -> dict[str, Any]:
    """The job of such a request, after a worker has run it; {"needed": bytes} where the API refuses it."""
    data = {"model": "mine", "prompt": "a bear", "seed": SEED, **fields}
    answer = served.http.post("/generate", data=data, files={"image": ("photo.png", picture())})
    if answer.status_code == 422:
        return {"needed": answer.json()["needed_bytes"]}
    assert answer.status_code == 202, answer.text
    served.run_next()
    return served.job(answer.json()["id"])


def in_least_memory(served: ServedModel, **fields: Any) -> dict[str, Any]:
    """The job in the smallest budget that is not refused, found by what each refusal says is needed."""
    budget = 1
    for _ in range(10):
        job = finished(served, memory_budget_bytes=budget, **fields)
        if job.get("status") == "succeeded":
            return job
        if "needed" not in job:
            assert job["error"]["code"] == "does_not_fit", job["error"]
        needed = job.get("needed") or job["error"]["data"]["needed_bytes"]
        assert needed > budget
        budget = needed
    raise AssertionError(f"no budget up to {budget} bytes is enough")


def history(served: ServedModel, job: dict[str, Any]) -> list[Event]:
    """The job's events."""
    with closing(open_store(served.settings)) as store:
        return [event for event in store.events_after(0, 10_000) if event.job_id == job["id"]]
