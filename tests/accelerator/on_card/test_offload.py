"""An enabled pipeline on a card, under each way in which diffusers offloads weights."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import tiny_pipelines
import torch
from PIL import Image

import adaptive
from app.models.place_weights import place
from app.pipelines import tiny


@pytest.fixture(scope="module")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.build(tmp_path_factory.mktemp("models") / "tiny")


def _video(pipe: Any) -> torch.Tensor:
    frames: torch.Tensor = pipe(
        image=Image.new("RGB", (64, 64), (200, 40, 90)),
        prompt="a red wall",
        width=64,
        height=64,
        num_frames=17,
        num_inference_steps=1,
        guidance_scale=1.0,
        generator=torch.Generator().manual_seed(7),
        output_type="pt",
    ).frames
    return frames.float().cpu()


def _placed(pipe: Any, kind: str, device: str) -> None:
    if kind == "resident":
        pipe.to(device)
    elif kind == "model":
        pipe.enable_model_cpu_offload(device=device)
    elif kind == "sequential":
        pipe.enable_sequential_cpu_offload(device=device)
    else:
        pipe.enable_group_offload(
            torch.device(device), torch.device("cpu"), offload_type="leaf_level", use_stream=True
        )


@pytest.mark.parametrize("kind", ["resident", "model", "sequential", "group"])
def test_an_enabled_pipeline_makes_the_same_video_and_gives_it_back(
    kind: str, device: str, tiny_folder: Path
) -> None:
    from diffusers import LTXImageToVideoPipeline

    pipe = LTXImageToVideoPipeline.from_pretrained(tiny_folder, dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    expected = _video(pipe)
    _placed(pipe, kind, device)
    attachment = adaptive.enable(pipe)
    assert torch.allclose(_video(pipe), expected, atol=1e-4)
    attachment.detach()
    assert torch.allclose(_video(pipe), expected, atol=1e-4)


@pytest.mark.parametrize(
    ("kind", "grouped"), [("group_offload", ["transformer"]), ("group_offload", []), ("model_offload", [])]
)
def test_a_pipeline_without_its_optional_components_is_placed(
    kind: str, grouped: Sequence[str], device: str
) -> None:
    pipe = tiny_pipelines.build("WanImageToVideoPipeline")
    assert pipe.transformer_2 is None
    return_to_host = place(pipe, kind, torch.device(device), grouped)
    for _ in range(2):
        latents = pipe(
            image=Image.new("RGB", (32, 32), (200, 40, 90)),
            prompt="a red wall",
            width=32,
            height=32,
            num_frames=9,
            num_inference_steps=1,
            guidance_scale=1.0,
            output_type="latent",
        ).frames
        return_to_host()
        assert latents.isfinite().all()
