"""One model folder served in this process: the API, the job table, and a worker on the CPU."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import tiny_pipelines
import torch
from PIL import Image
from starlette.testclient import TestClient

from adaptive.memory.profile import MemoryProfile
from adaptive.memory.profile_trace import profile_of
from app.api import create_app
from app.config import Settings
from app.models.downloads.access import AskHub
from app.models.entries import ModelEntry, load_models
from app.service.exposition.metrics import ServiceMetrics
from app.store import open_store
from app.worker.engine import Engine
from app.worker.loop import Worker

ENTRY = """
[models.mine]
pipeline = "LTXImageToVideoPipeline"
source = "{source}"
dtype = "{dtype}"
vae_class = "AutoencoderKLLTXVideo"
size_multiple = 32
temporal_ratio = 8
first_frame_alone = true

[models.mine.defaults]
width = 64
height = 64
num_frames = 9
fps = 8
num_inference_steps = 1
guidance_scale = 1.0

[models.mine.limits]
max_pixels = 65536
max_frames = 64
max_steps = 10
"""


@dataclass(frozen=True)
class ServedModel:
    """The service in this process, with one model of its own called `mine`."""

    settings: Settings
    models: dict[str, ModelEntry]
    http: TestClient
    engine: Engine

    def submit(self, **fields: Any) -> str:
        """Queue a job of the model; returns its id."""
        given = {"model": "mine", "prompt": "a bear", "seed": 5, **fields}
        answer = self.http.post("/generate", data=given, files={"image": ("photo.png", _picture())})
        assert answer.status_code == 202, answer.text
        return str(answer.json()["id"])

    def run_next(self) -> None:
        """What a worker does with the next job."""
        with closing(open_store(self.settings)) as store:
            claim = store.claim("here", models=["mine"], loaded_model=None, lease_seconds=600)
            assert claim is not None
            Worker(self.settings, self.models, store, self.engine, "here")._run_job(claim)

    def job(self, job_id: str) -> dict[str, Any]:
        """The job as clients see it."""
        job: dict[str, Any] = self.http.get(f"/jobs/{job_id}").json()
        return job

    def events(self, kind: str) -> list[dict[str, Any]]:
        """Data of all events of that kind."""
        with closing(open_store(self.settings)) as store:
            return [event.data for event in store.events_after(0, 10_000) if event.kind == kind]

    def counted(self) -> str:
        """The text of a scrape after all events."""
        metrics = ServiceMetrics({name: entry.vae_class for name, entry in self.models.items()})
        with closing(open_store(self.settings)) as store:
            metrics.apply(store.events_after(0, 10_000))
        return metrics.render().decode()


@contextmanager
def served_model(
    data_dir: Path, source: Path, dtype: str = "float32", *, ask_hub: AskHub | None = None, **options: Any
) -> Iterator[ServedModel]:
    """Serve the folder `source` until the end of the block."""
    data_dir.mkdir(parents=True, exist_ok=True)
    file = data_dir / "models.toml"
    file.write_text(ENTRY.format(source=source, dtype=dtype))
    options = {"reserve_bytes": 0, "calibrate_seconds": 0, **options}
    settings = Settings(data_dir=data_dir, models_file=file, **options)
    models = load_models(settings)

    with TestClient(create_app(settings, load_profile=_profile_of, ask_hub=ask_hub)) as http:
        yield ServedModel(settings, models, http, Engine(settings, "cpu"))


def _profile_of(entry: ModelEntry) -> MemoryProfile | None:
    """The profile of the served model, and of the built-in one, whose VAE is of the same class."""
    return _profile(entry.pipeline, entry.dtype) if entry.name in ("mine", "photo-pan") else None


@cache
def _profile(pipeline: str, dtype: str) -> MemoryProfile:
    return profile_of(tiny_pipelines.build(pipeline).vae, getattr(torch, dtype))


def _picture() -> bytes:
    file = io.BytesIO()
    Image.linear_gradient("L").resize((64, 64)).convert("RGB").save(file, "png")
    return file.getvalue()
