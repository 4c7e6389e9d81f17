"""A tiny DynamiCrafter under the service's engine: loaded, denoised, and decoded by every strategy."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from app.config import Settings
from app.jobs import DecodeStrategy, JobSpec
from app.models.components import components_of
from app.models.entries import ModelDefaults, ModelEntry, ModelLimits
from app.models.weight_sizes import component_sizes
from app.pipelines.dynamicrafter import build_tiny_pipeline
from app.worker.engine import Engine
from app.worker.loaded_model import LoadedModel

Events = list[tuple[str, dict[str, Any]]]


@pytest.fixture(scope="module")
def entry(tmp_path_factory: pytest.TempPathFactory) -> ModelEntry:
    folder = tmp_path_factory.mktemp("models") / "dynamicrafter"
    build_tiny_pipeline(256).save_pretrained(folder)
    return ModelEntry(
        name="dynamicrafter",
        pipeline="DynamiCrafterPipeline",
        source=str(folder),
        dtype="float32",
        vae_class="AutoencoderKL",
        size_multiple=64,
        temporal_ratio=1,
        first_frame_alone=False,
        defaults=ModelDefaults(
            width=64, height=64, num_frames=16, fps=8, num_inference_steps=7, guidance_scale=7.5
        ),
        limits=ModelLimits(max_pixels=64 * 64, max_frames=16, max_steps=10),
    )


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Engine:
    return Engine(Settings(data_dir=tmp_path_factory.mktemp("data")), "cpu")


def _spec(strategy: DecodeStrategy = DecodeStrategy.AUTO, frames_per_chunk: int | None = None) -> JobSpec:
    return JobSpec(
        prompt="a bear dances",
        model="dynamicrafter",
        width=64,
        height=64,
        num_frames=16,
        fps=8,
        num_inference_steps=7,
        guidance_scale=7.5,
        seed=3,
        decode_strategy=strategy,
        frames_per_chunk=frames_per_chunk,
    )


def _load(engine: Engine, entry: ModelEntry) -> tuple[LoadedModel, Events]:
    events: Events = []
    model = engine.load(entry, lambda kind, data: events.append((kind, dict(data))))
    return model, events


def test_every_part_of_the_model_is_sized(entry: ModelEntry, tmp_path: Path) -> None:
    sizes = component_sizes(components_of(entry, Settings(data_dir=tmp_path)), "float32")
    parts = {size.name for size in sizes}
    assert parts == {"unet", "vae", "text_encoder", "image_encoder", "image_projector"}


def test_every_strategy_decodes_the_same_frames(engine: Engine, entry: ModelEntry) -> None:
    model, events = _load(engine, entry)
    assert not [data for kind, data in events if kind == "self_test_failed"]
    photo = io.BytesIO()
    pixels = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(photo, "png")

    model.fit_denoise(_spec(), lambda kind, data: events.append((kind, dict(data))))
    assert events[-1][0] == "denoise_plan"
    assert events[-1][1]["guidance_passes"] == 1

    assert model.not_resumable is None
    steps: list[tuple[int, int]] = []
    clip = model.denoise(_spec(), photo.getvalue(), on_step=lambda *step: steps.append(step))
    (recorded,) = clip.calls
    # Uniform spacing takes eight steps where seven were asked for.
    assert steps == [(done, 8) for done in range(1, 9)]

    decoded = {}
    for strategy, size in (
        (DecodeStrategy.BATCHED, None),
        (DecodeStrategy.CHUNKED, 5),
        (DecodeStrategy.PER_FRAME, None),
    ):
        decoding = model.open_decode(recorded, _spec(strategy, size), lambda *_: None)
        assert model.video_shape(clip).frames == 16
        parts = list(decoding.frames())
        decoded[strategy] = torch.cat(parts, dim=2)
        assert decoding.report()["strategy"] == strategy.value
        assert decoding.report()["exact"]
        assert [part.shape[2] for part in parts] == {
            DecodeStrategy.BATCHED: [16],
            DecodeStrategy.CHUNKED: [5, 5, 5, 1],
            DecodeStrategy.PER_FRAME: [1] * 16,
        }[strategy]
    batched = decoded.pop(DecodeStrategy.BATCHED)
    assert batched.shape == (1, 3, 16, 64, 64)
    for frames in decoded.values():
        torch.testing.assert_close(frames, batched, atol=1e-5, rtol=0)
