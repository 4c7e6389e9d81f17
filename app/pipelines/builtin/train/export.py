"""Exports the networks as one folder that `DiffusionPipeline.from_pretrained` loads.

Owns the scheduler and the file format. Must not know how the weights are made.
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

SCHEDULER_SHIFT = 3.0  # moves the few steps to the noise levels at which the motion is decided


def export(vae: AutoencoderKLLTXVideo, denoiser: Denoiser, folder: Path) -> None:
    """Write the pipeline to `folder`, replacing it: float16, except the text encoder in float32."""
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
    # By default transformers loads the stored dtype, and diffusers loads float32: with float32 they agree.
    pipe.text_encoder.to(torch.float32)
    pipe.save_pretrained(folder, safe_serialization=True)
    for path in folder.rglob("*.safetensors"):
        path.chmod(0o644)
