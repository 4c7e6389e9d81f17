"""Models of which nothing but the VAE is there, and the command."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny_pipelines
import torch
from typer.testing import CliRunner, Result

from app.cli import app

MODEL = """
[models.{name}]
pipeline = "{pipeline}"
source = "{source}"
dtype = "float32"
vae_class = "{vae_class}"
size_multiple = {multiple}
temporal_ratio = {ratio}
first_frame_alone = {alone}
[models.{name}.defaults]
width = 64
height = 64
num_frames = {frames}
fps = 12
num_inference_steps = 2
guidance_scale = 1.0
[models.{name}.limits]
max_pixels = 65536
max_frames = 257
max_steps = 10
"""
# Name: pipeline that has the VAE, multiple of its sides, frames from a latent frame.
PIPELINES = {
    "ltx": ("LTXImageToVideoPipeline", 32, 8, True),
    "wan": ("WanImageToVideoPipeline", 16, 4, True),
    "svd": ("StableVideoDiffusionPipeline", 32, 1, False),
    "hunyuan": ("HunyuanVideoImageToVideoPipeline", 16, 4, True),
}


@pytest.fixture(scope="session")
def vaes() -> dict[str, Any]:
    """VAEs of the models in `PIPELINES`; LTX's has means and spreads as published checkpoints do."""
    found = {name: tiny_pipelines.build(pipeline).vae for name, (pipeline, *_) in PIPELINES.items()}
    generator = torch.Generator().manual_seed(2)
    found["ltx"].latents_mean.copy_(torch.randn(8, generator=generator))
    found["ltx"].latents_std.copy_(torch.rand(8, generator=generator) + 0.5)
    return found


@pytest.fixture(scope="session")
def models_file(vaes: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Models of which only the VAE's folder is there: whoever loads more fails."""
    folder = tmp_path_factory.mktemp("models")
    text = ""
    for name, (pipeline, multiple, ratio, alone) in PIPELINES.items():
        vaes[name].save_pretrained(folder / name / "vae")
        text += MODEL.format(
            name=name,
            pipeline=pipeline,
            source=folder / name,
            vae_class=type(vaes[name]).__name__,
            multiple=multiple,
            ratio=ratio,
            alone=str(alone).lower(),
            frames=ratio + alone,
        )
    (folder / "models.toml").write_text(text)
    return folder / "models.toml"


@pytest.fixture
def framefit(models_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Result]:
    """The command, in this process."""
    monkeypatch.setenv("FRAMEFIT_MODELS_FILE", str(models_file))
    monkeypatch.setenv("FRAMEFIT_DATA_DIR", str(tmp_path / "data"))
    monkeypatch.setenv("FRAMEFIT_RESERVE_BYTES", "0")
    monkeypatch.setenv("COLUMNS", "200")

    def run(*arguments: object) -> Result:
        return CliRunner().invoke(app, [str(argument) for argument in arguments])

    return run
