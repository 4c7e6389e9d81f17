"""Pictures of latents by a linear map that is fitted to a VAE, against what the VAE really decodes."""

from functools import partial
from pathlib import Path
from typing import Any

import denoise_cases
import numpy as np
import pytest
import torch
from diffusers import LTXImageToVideoPipeline
from PIL import Image
from torch.nn.functional import avg_pool2d

from adaptive.decoding.encode_functions import encode
from adaptive.denoise.preview.pixel_map import LEAST_CORRELATION, PixelMap, fit_pixel_map
from adaptive.families import family_of
from adaptive.pipelines.capture import capture
from app.pipelines.builtin import MODEL_FOLDER

PHOTO = Path(__file__).parents[4] / "app" / "assets" / "demo.jpg"


def fitted(vae: Any) -> PixelMap:
    pixels = torch.from_numpy(np.array(Image.open(PHOTO).convert("RGB"))).permute(2, 0, 1)
    return fit_pixel_map(family_of(vae).traits_of(vae), pixels / 127.5 - 1, partial(encode, vae))


def test_pictures_of_a_trained_vae_look_like_its_decode() -> None:
    pipe = LTXImageToVideoPipeline.from_pretrained(MODEL_FOLDER)  # several frames for each latent one
    made = fitted(pipe.vae)
    assert made.correlation > 0.95
    photo = Image.open(PHOTO).convert("RGB").crop((180, 120, 436, 376)).resize((128, 128))
    arguments = {"prompt": "a cat", "num_inference_steps": 2, "width": 128, "height": 128, "num_frames": 9}
    generator = torch.Generator().manual_seed(1)
    with capture(pipe) as calls:
        pipe(image=photo, generator=generator, output_type="pt", **arguments)
    latents = calls[0].latents
    with torch.no_grad():
        video = pipe.vae.decode(latents, return_dict=False)[0][0]
    frames = [0, 4, 8]
    pictures = made.pictures(latents[0].transpose(0, 1))
    real = avg_pool2d(video[:, frames].transpose(0, 1), 128 // pictures.shape[-1]).clamp(-1, 1)
    assert pictures.shape == real.shape
    assert torch.corrcoef(torch.stack([pictures.flatten(), real.flatten()]))[0, 1] > 0.9


def test_a_vae_of_random_weights_has_no_map_that_is_good_enough() -> None:
    assert fitted(denoise_cases.built("wan21").vae).correlation < LEAST_CORRELATION


def test_a_map_is_the_same_after_it_was_stored() -> None:
    made = PixelMap(torch.rand(5, 12), 2, 0.9)
    again = PixelMap.from_json(made.to_json())
    assert torch.equal(again.weights, made.weights)
    assert (again.sub, again.correlation) == (2, 0.9)
    with pytest.raises(ValueError, match="no map"):
        PixelMap.from_json({**made.to_json(), "sub": 3})
