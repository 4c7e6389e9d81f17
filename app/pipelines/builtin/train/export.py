"""Puts the trained parts together as one folder that `DiffusionPipeline.from_pretrained` loads.

Owns the scheduler and the file format. Knows nothing of training.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import torch
from diffusers import (
    AutoencoderKLLTXVideo,
    FlowMatchEulerDiscreteScheduler,
    LTXImageToVideoPipeline,
)

from app.pipelines.builtin.train.denoiser import Denoiser

SCHEDULER_SHIFT = 3.0  # few steps: spend them where the motion is decided


def export(vae: AutoencoderKLLTXVideo, denoiser: Denoiser, folder: Path) -> None:
    """Write the pipeline to `folder`: float16, but for the tiny text encoder."""
    if folder.exists():
        shutil.rmtree(folder)
    pipe = LTXImageToVideoPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(shift=SCHEDULER_SHIFT),
        vae=vae,
        text_encoder=denoiser.text_encoder,
        tokenizer=denoiser.tokenizer,
        transformer=denoiser.transformer,
    )
    pipe.to(torch.float16)
    # Left to itself transformers loads in the stored type and diffusers in float32: stored alike, they agree.
    pipe.text_encoder.to(torch.float32)
    pipe.save_pretrained(folder, safe_serialization=True)
    for path in folder.rglob("*.safetensors"):
        path.chmod(0o644)
