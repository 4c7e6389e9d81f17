"""Writes the model's folder: `python -m app.pipelines.photo_pan.weights`. The service never imports it.

The autoencoder is an unmodified `AutoencoderKLLTXVideo` that computes a block cosine transform (ITU-T T.81,
A.3.3) of 8x8 pixels in luma and two colour differences (ITU-R BT.601). It keeps all of the luma and the
coarse part of the colours, about as H.264's 4:2:0 does. All weights are in closed form.

Two things make a network of SiLUs and norms linear. A constant channel is far larger than the picture, so
that RMSNorm divides by a constant, and SiLU's inputs are so small that it only halves them.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKLLTXVideo, FlowMatchEulerDiscreteScheduler

from app.pipelines.photo_pan import MODEL_FOLDER
from app.pipelines.photo_pan.denoiser import PhotoPanDenoiser
from app.pipelines.photo_pan.pipeline import PhotoPanPipeline

BLOCK_PX = 8
LUMA_SIDE, CHROMA_SIDE = 8, 5
LATENT_CHANNELS = LUMA_SIDE**2 + 2 * CHROMA_SIDE**2
WIDTH = LATENT_CHANNELS + 2
CONFIG: dict[str, Any] = {
    "latent_channels": LATENT_CHANNELS,
    "patch_size": BLOCK_PX,
    "block_out_channels": (WIDTH,),
    "layers_per_block": (0, 0),
    "down_block_types": ("LTXVideoDownBlock3D",),
    "spatio_temporal_scaling": (False,),
    "downsample_type": ("conv",),
    "decoder_block_out_channels": (WIDTH,),
    "decoder_layers_per_block": (0, 0),
    "decoder_spatio_temporal_scaling": (False,),
    "decoder_inject_noise": (False, False),
    "upsample_residual": (False,),
    "upsample_factor": (1,),
    "encoder_causal": True,
    "decoder_causal": True,
}
CONSTANT = 2.0**20
LEAST_LOG_VARIANCE = -30.0
# Rows: luma and the two colour differences of RGB.
TO_LUMA_CHROMA = torch.tensor(
    [[0.299, 0.587, 0.114], [-0.168736, -0.331264, 0.5], [0.5, -0.418688, -0.081312]], dtype=torch.float64
)
# Standard deviation of a coefficient of photographs in -1..1, which falls with the frequency.
LEVELS = (4.0, 0.7, 0.7)


def cosines(count: int) -> torch.Tensor:
    """[count, 8]: the first rows of the orthonormal cosine transform of 8 values."""
    row = torch.arange(count, dtype=torch.float64)[:, None]
    column = torch.arange(BLOCK_PX, dtype=torch.float64)[None]
    basis = torch.cos(math.pi * (2 * column + 1) * row / (2 * BLOCK_PX)) * math.sqrt(2 / BLOCK_PX)
    basis[0] /= math.sqrt(2)
    return basis


def analysis() -> torch.Tensor:
    """[latents, 192]: latents of a block, whose values are ordered as diffusers unpacks them."""
    return _coefficients(TO_LUMA_CHROMA)


def synthesis() -> torch.Tensor:
    """[192, latents]: the block of latents. Left inverse of `analysis` on the coefficients that are kept."""
    return _coefficients(torch.linalg.inv(TO_LUMA_CHROMA).T).T


def deviations() -> torch.Tensor:
    """[latents]: the scale of each latent in photographs."""
    parts = []
    for side, level in zip((LUMA_SIDE, CHROMA_SIDE, CHROMA_SIDE), LEVELS, strict=True):
        frequency = torch.arange(side, dtype=torch.float64)
        parts.append((level / (1 + frequency[:, None] ** 2 + frequency[None] ** 2)).flatten())
    return torch.cat(parts)


def _coefficients(colours: torch.Tensor) -> torch.Tensor:
    parts = []
    for side, colour in zip((LUMA_SIDE, CHROMA_SIDE, CHROMA_SIDE), colours, strict=True):
        basis = cosines(side)
        # diffusers orders a patch's values by colour, column, row
        parts.append(torch.einsum("c,uy,vx->uvcxy", colour, basis, basis).reshape(side**2, -1))
    return torch.cat(parts)


@torch.no_grad()
def autoencoder() -> AutoencoderKLLTXVideo:
    """The autoencoder with its weights, in evaluation mode."""
    vae: Any = AutoencoderKLLTXVideo(**CONFIG)
    for parameter in vae.parameters():
        parameter.zero_()
    rms = CONSTANT / math.sqrt(WIDTH)
    latent = torch.arange(LATENT_CHANNELS)
    encoder, decoder = vae.encoder, vae.decoder
    encoder.conv_in.conv.weight[:LATENT_CHANNELS, :, -1, 1, 1] = analysis().float()
    encoder.conv_in.conv.bias[-1] = CONSTANT
    encoder.conv_out.conv.weight[latent, latent, -1, 1, 1] = 2 * rms
    encoder.conv_out.conv.bias[-1] = LEAST_LOG_VARIANCE
    decoder.conv_in.conv.weight[latent, latent, -1, 1, 1] = 1
    decoder.conv_in.conv.bias[-1] = CONSTANT
    decoder.conv_out.conv.weight[:, :LATENT_CHANNELS, -1, 1, 1] = 2 * rms * synthesis().float()
    vae.latents_mean.zero_()
    vae.latents_std.copy_(deviations().float())
    result: AutoencoderKLLTXVideo = vae.eval()
    return result


def pipeline() -> PhotoPanPipeline:
    """The whole pipeline."""
    denoiser = PhotoPanDenoiser(2 * LATENT_CHANNELS, LATENT_CHANNELS).eval()
    return PhotoPanPipeline(autoencoder(), denoiser, FlowMatchEulerDiscreteScheduler(shift=3.0))


def write(folder: Path = MODEL_FOLDER) -> None:
    """Write the model's folder; the same bytes each time."""
    pipeline().save_pretrained(folder)


if __name__ == "__main__":
    write()
