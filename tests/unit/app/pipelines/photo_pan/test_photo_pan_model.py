"""The model folder of `photo-pan`: its clips are the resampled photo, its VAE streams exactly."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

import adaptive
from app.pipelines.photo_pan import MODEL_FOLDER, PhotoPanPipeline, weights
from app.pipelines.photo_pan.camera import boxes
from app.pipelines.photo_pan.prompt import motion_of
from app.pipelines.photo_pan.resampling import frames

PHOTO = Path(__file__).parents[5] / "app" / "assets" / "demo.jpg"
SIZE = (192, 128)


@pytest.fixture(scope="module")
def pipe() -> Any:
    loaded = PhotoPanPipeline.from_pretrained(MODEL_FOLDER)
    loaded.set_progress_bar_config(disable=True)
    return loaded


def psnr_db(made: np.ndarray, wanted: np.ndarray) -> float:
    return float(10 * np.log10(1 / np.mean((made - wanted) ** 2)))


@pytest.mark.parametrize("prompt", ["pan right", "zoom in", "zoom out and up", "still"])
@pytest.mark.parametrize("steps", [1, 3])
def test_a_clip_is_the_camera_s_way_over_the_photo(pipe: Any, prompt: str, steps: int) -> None:
    photo = Image.open(PHOTO).convert("RGB")
    made = pipe(
        photo,
        prompt=prompt,
        width=SIZE[0],
        height=SIZE[1],
        num_frames=5,
        num_inference_steps=steps,
        output_type="np",
        generator=torch.Generator().manual_seed(1),
    ).frames[0]
    way = boxes(photo.size, SIZE, motion_of(prompt), 5)
    wanted = np.stack([np.asarray(frame) for frame in frames(photo, way, SIZE)]) / 255
    assert psnr_db(made, wanted) > 45


@pytest.mark.parametrize("frames_per_chunk", [1, 2, 5])
def test_its_clips_are_decoded_and_encoded_in_chunks_exactly(pipe: Any, frames_per_chunk: int) -> None:
    draws = torch.Generator().manual_seed(3)
    latents = torch.randn((1, weights.LATENT_CHANNELS, 5, 6, 4), generator=draws)
    with torch.no_grad():
        whole = pipe.vae.decode(latents, return_dict=False)[0]
        chunks = [*adaptive.stream_decode(pipe.vae, latents, frames_per_chunk=frames_per_chunk)]
    assert torch.cat(chunks, dim=2).shape == whole.shape
    assert (torch.cat(chunks, dim=2) - whole).abs().max() < 1e-5


def test_luma_is_kept_whole_and_frames_do_not_touch_each_other(pipe: Any) -> None:
    draws = torch.Generator().manual_seed(4)
    grey = (torch.rand((1, 1, 3, 64, 64), generator=draws) * 2 - 1).expand(1, 3, 3, 64, 64)
    with torch.no_grad():
        decoded = pipe.vae.decode(pipe.vae.encode(grey).latent_dist.mode(), return_dict=False)[0]
        alone = pipe.vae.decode(pipe.vae.encode(grey[:, :, 1:2]).latent_dist.mode(), return_dict=False)[0]
    assert (decoded - grey).abs().max() < 1e-3, "noise, which no other codec keeps"
    assert (decoded[:, :, 1:2] - alone).abs().max() < 1e-5


def test_the_folder_holds_the_weights_of_the_formula() -> None:
    stored = load_file(MODEL_FOLDER / "vae" / "diffusion_pytorch_model.safetensors")
    made = weights.autoencoder().state_dict()
    assert stored.keys() == made.keys()
    for name, value in stored.items():
        assert torch.allclose(value, made[name], rtol=1e-5, atol=1e-9), name


def test_its_rules_are_read_without_torch() -> None:
    code = "import sys, app.pipelines.photo_pan.rules; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
