"""An LTX pipeline of random weights whose text encoder is larger than all the rest, as T5-XXL is.

On a card that holds 1/200 of a real one: margins whose constants are in bytes are scaled down as well.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from worker_on_card import WorkerOnCard

from adaptive.memory import margin_fit, margins
from adaptive.memory.margin_fit import Margin
from app.config import Settings
from app.models import profiles, requirements
from app.models.entries import load_models
from app.pipelines import tiny

MIB = 2**20
ENTRY = """
[models.fat]
pipeline = "LTXImageToVideoPipeline"
source = "{source}"
dtype = "float32"
vae_class = "AutoencoderKLLTXVideo"
size_multiple = 32
temporal_ratio = 8
first_frame_alone = true
{more}

[models.fat.defaults]
width = 64
height = 64
num_frames = 9
fps = 8
num_inference_steps = 2
guidance_scale = 3.0

[models.fat.limits]
max_pixels = 262144
max_frames = 97
max_steps = 40
"""


def save(folder: Path) -> Path:
    """The pipeline's folder: the built-in VAE, a text encoder of 60 MiB, a transformer of 14."""
    import diffusers
    from transformers import T5Config, T5EncoderModel

    pipe = diffusers.LTXImageToVideoPipeline.from_pretrained(tiny.build(folder.with_name("tiny")))
    latents, text = pipe.transformer.config.in_channels, pipe.text_encoder.config.d_model
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        wide, layers = 4096, 60 * MIB // (3 * 4 * text * 4096)
        config = T5Config(**{**pipe.text_encoder.config.to_dict(), "d_ff": wide, "num_layers": layers})
        transformer = diffusers.LTXVideoTransformer3DModel(
            in_channels=latents,
            out_channels=latents,
            num_attention_heads=4,
            attention_head_dim=64,
            cross_attention_dim=256,
            num_layers=3,
            caption_channels=text,
        )
        pipe.register_modules(text_encoder=T5EncoderModel(config).eval(), transformer=transformer.eval())
    pipe.save_pretrained(folder)
    return folder


def scale_margins(patch: pytest.MonkeyPatch) -> None:
    """Constants of cold margins as small as the card."""
    patch.setattr(requirements, "PROMPT_ACTIVATION_BYTES", 12 * MIB)
    for module in (margins, margin_fit):
        patch.setitem(module.COLD_MARGINS, "cuda", Margin(1.25, 1.6, MIB, 2 * MIB, 1.25))
        patch.setitem(margin_fit.LEAST_CONSTANT_BYTES, "cuda", MIB)


def worker(folder: Path, model: Path, device: str, *, more: str = "", **settings: Any) -> WorkerOnCard:
    """A worker that serves the model as `fat`, and knows its profile. `more`: lines of its entry."""
    folder.mkdir()
    file = folder.parent / f"{folder.name}.toml"
    file.write_text(ENTRY.format(source=model, more=more))
    known = Settings(data_dir=folder, models_file=file)
    entries = load_models(known)
    profile = profiles.load(known, entries["tiny"])
    assert profile is not None
    profiles.save(known, entries["fat"], profile)
    return WorkerOnCard(folder, model, device, models_file=file, **settings)
