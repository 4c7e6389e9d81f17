"""The built-in pipeline and a small picture, shared by this folder's tests.

Imports no torch: pytest loads this file in all of its processes. The one that hands out tests needs none.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from app.pipelines import tiny


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of the built-in model."""
    return tiny.build(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture
def pipe(tiny_folder: Path) -> Any:
    """The built-in pipeline, loaded afresh."""
    import torch
    from diffusers import LTXImageToVideoPipeline

    pipeline = LTXImageToVideoPipeline.from_pretrained(tiny_folder, dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.fixture
def request_arguments() -> dict[str, Any]:
    """A small request in the pipeline's own words; its generator starts anew in each test."""
    import torch

    return {
        "image": Image.new("RGB", (64, 64), (200, 40, 90)),
        "prompt": "a red wall",
        "width": 64,
        "height": 64,
        "num_frames": 17,
        "num_inference_steps": 2,
        "guidance_scale": 1.0,
        "generator": torch.Generator().manual_seed(7),
    }
