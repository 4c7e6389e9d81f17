"""Tiny VAEs of random weights, shaped like the published configurations, and measures the tests share."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from functools import cache
from itertools import cycle
from typing import Any

import diffusers
import torch
from torch import Tensor, nn

from adaptive.stream import DecodeStream, open_decode

# Block counts, causality, conditioning and residuals as published for each version; widths cut to a few
# channels.
_LTX_090 = {
    "latent_channels": 8,
    "block_out_channels": (8, 8, 16, 16),
    "decoder_block_out_channels": (8, 8, 16, 16),
}
_LTX_091 = {
    "latent_channels": 8,
    "block_out_channels": (8, 8, 16, 16),
    "decoder_block_out_channels": (8, 16, 32),
    "decoder_layers_per_block": (1, 2, 1, 1),
    "decoder_spatio_temporal_scaling": (True, True, True),
    "decoder_inject_noise": (False, False, False, False),
    "upsample_residual": (True, True, True),
    "upsample_factor": (2, 2, 2),
    "timestep_conditioning": True,
}
_LTX_095 = {
    **_LTX_091,
    "block_out_channels": (8, 16, 16, 16, 16),
    "down_block_types": ("LTXVideo095DownBlock3D",) * 4,
    "layers_per_block": (1, 1, 1, 1, 1),
    "downsample_type": ("spatial", "temporal", "spatiotemporal", "spatiotemporal"),
    "spatio_temporal_scaling": (True, True, True, True),
    "spatial_compression_ratio": 32,
    "temporal_compression_ratio": 8,
}
_LTX2 = {
    "latent_channels": 8,
    "block_out_channels": (8, 16, 16, 16),
    "layers_per_block": (1, 1, 1, 1, 1),
    "decoder_block_out_channels": (8, 16, 32),
    "decoder_layers_per_block": (1, 2, 1, 1),
}
_SHALLOW = {"layers_per_block": (1, 1, 1, 1, 1), "decoder_layers_per_block": (1, 2, 1, 1, 1)}

CONFIGS: dict[str, tuple[str, dict[str, Any]]] = {
    "ltx-0.9.0": ("AutoencoderKLLTXVideo", {**_LTX_090, **_SHALLOW}),
    "ltx-causal": ("AutoencoderKLLTXVideo", {**_LTX_090, **_SHALLOW, "decoder_causal": True}),
    "ltx-0.9.1": ("AutoencoderKLLTXVideo", {**_LTX_091, "layers_per_block": (1, 1, 1, 1, 1)}),
    "ltx-0.9.5": ("AutoencoderKLLTXVideo", _LTX_095),
    "ltx-noise": (
        "AutoencoderKLLTXVideo",
        {
            **_LTX_090,
            **_SHALLOW,
            "decoder_block_out_channels": (8, 8, 8, 8),
            "decoder_inject_noise": (True, False, True, True, True),
        },
    ),
    "wan-2.1": (
        "AutoencoderKLWan",
        {
            "base_dim": 4,
            "z_dim": 4,
            "dim_mult": [1, 2, 2],
            "num_res_blocks": 1,
            "temperal_downsample": [True, True],
        }
        | {"latents_mean": (0.0,) * 4, "latents_std": (1.0,) * 4, "scale_factor_spatial": 4},
    ),
    "wan-2.2": (
        "AutoencoderKLWan",
        {"base_dim": 4, "decoder_base_dim": 8, "z_dim": 4, "dim_mult": [1, 2, 2], "num_res_blocks": 1}
        | {"temperal_downsample": [True, True], "is_residual": True, "in_channels": 12, "out_channels": 12}
        | {"latents_mean": (0.0,) * 4, "latents_std": (1.0,) * 4, "scale_factor_spatial": 8, "patch_size": 2},
    ),
    "ltx2": ("AutoencoderKLLTX2Video", _LTX2),
    "ltx2-noncausal": (
        "AutoencoderKLLTX2Video",
        _LTX2
        | {"decoder_causal": False, "decoder_block_out_channels": (8, 8, 16), "upsample_factor": (1, 1, 1)}
        | {"upsample_residual": False, "upsample_type": ("spatial", "temporal", "spatiotemporal")},
    ),
    "cogvideox": (
        "AutoencoderKLCogVideoX",
        {
            "latent_channels": 4,
            "block_out_channels": (8, 8, 16, 16),
            "layers_per_block": 1,
            "norm_num_groups": 2,
        },
    ),
    "hunyuanvideo-1.5": (
        "AutoencoderKLHunyuanVideo15",
        {"latent_channels": 4, "block_out_channels": (8, 8, 16, 16, 16), "layers_per_block": 1},
    ),
    "mochi": (
        "AutoencoderKLMochi",
        {
            "latent_channels": 4,
            "encoder_block_out_channels": (32, 32, 32, 32),
            "decoder_block_out_channels": (32, 32, 32, 32),
            "layers_per_block": (1, 1, 1, 1, 1),
            "latents_mean": (0.0,) * 4,
            "latents_std": (1.0,) * 4,
        },
    ),
    "cosmos": (
        "AutoencoderKLCosmos",
        {
            "latent_channels": 4,
            "encoder_block_out_channels": (8, 8, 16, 16),
            "decode_block_out_channels": (8, 8, 16, 16),
            "num_layers": 1,
            "patch_size": 2,
            "spatial_compression_ratio": 4,
            "temporal_compression_ratio": 4,
        },
    ),
    "cosmos-rearrange": (
        "AutoencoderKLCosmos",
        {
            "latent_channels": 4,
            "encoder_block_out_channels": (8, 16, 16, 16),
            "decode_block_out_channels": (8, 16, 16, 16),
            "num_layers": 1,
            "patch_type": "rearrange",
            "attention_resolutions": (64,),
            "resolution": 256,
        },
    ),
    "qwenimage": (
        "AutoencoderKLQwenImage",
        {
            "base_dim": 4,
            "z_dim": 4,
            "dim_mult": [1, 2, 2],
            "num_res_blocks": 1,
            "temperal_downsample": [True, True],
        }
        | {"latents_mean": (0.0,) * 4, "latents_std": (1.0,) * 4},
    ),
    "magvit": (
        "AutoencoderKLMagvit",
        {"latent_channels": 4, "block_out_channels": (8, 8, 16, 16), "layers_per_block": 1}
        | {"norm_num_groups": 2},
    ),
    "hunyuanvideo-1.0": (
        "AutoencoderKLHunyuanVideo",
        {"latent_channels": 4, "block_out_channels": (8, 8, 8, 8), "layers_per_block": 1}
        | {"norm_num_groups": 1},
    ),
    "svd": (
        "AutoencoderKLTemporalDecoder",
        {
            "latent_channels": 4,
            "block_out_channels": (32, 32),
            "down_block_types": ("DownEncoderBlock2D",) * 2,
            "layers_per_block": 1,
        },
    ),
    "kl": (
        "AutoencoderKL",
        {
            "latent_channels": 4,
            "block_out_channels": (8, 16),
            "norm_num_groups": 4,
            "down_block_types": ("DownEncoderBlock2D",) * 2,
            "up_block_types": ("UpDecoderBlock2D",) * 2,
        },
    ),
}
LTX = tuple(name for name in CONFIGS if name.startswith("ltx-"))


# The decoders of these attend to all earlier frames, which their streams must keep.
LOOKS_BACK = ("hunyuanvideo-1.5", "cosmos", "cosmos-rearrange")


def build(name: str, dtype: torch.dtype = torch.float32) -> Any:
    """A new VAE of the named configuration; every parameter is random, none is zero."""
    return copy.deepcopy(_template(name, dtype))


@cache
def _template(name: str, dtype: torch.dtype) -> Any:
    """What `build` copies: that takes a fraction of the time that making a VAE takes."""
    vae_class, config = CONFIGS[name]
    with torch.random.fork_rng([]), torch.no_grad():
        torch.manual_seed(7)
        vae = getattr(diffusers, vae_class)(**config).eval()
        for parameter in vae.parameters():
            if parameter.numel() > 1 and parameter.min() == parameter.max():
                parameter.add_(torch.randn_like(parameter), alpha=0.3)
    for module in (vae, *vae.modules()):
        module._keep_in_fp32_modules = None
    return nn.Module.to(vae, dtype)


@cache
def shared(name: str, dtype: torch.dtype = torch.float32) -> Any:
    """The same, built once; tests must not change it."""
    return build(name, dtype)


def latents_of(
    vae: Any, frames: int, *, batch: int = 1, seed: int = 0, sides: tuple[int, int] = (2, 3)
) -> Tensor:
    """Random latents `[B, C, T, h, w]`."""
    generator = torch.Generator().manual_seed(seed)
    channels = vae.config.get("latent_channels") or vae.config.get("z_dim")
    return torch.randn((batch, channels, frames, *sides), generator=generator).to(vae.dtype)


def kwargs_of(vae: Any, batch: int = 1) -> dict[str, Any]:
    """What `vae.decode` needs beside latents."""
    if vae.config.get("timestep_conditioning"):
        return {"temb": torch.linspace(0.05, 0.3, batch, dtype=vae.dtype)}
    return {}


def run(stream: DecodeStream, schedule: Sequence[int]) -> Iterator[Tensor]:
    """Step to the end, taking the schedule's chunk sizes in turn."""
    sizes = cycle(schedule)
    while not stream.finished:
        yield stream.step(next(sizes))


def streamed(vae: Any, latents: Tensor, schedule: Sequence[int], **kwargs: Any) -> Tensor:
    """The whole video, decoded in steps."""
    with open_decode(vae, latents, **kwargs) as stream:
        return torch.cat(list(run(stream, schedule)), 2)


def relative_error(actual: Tensor, expected: Tensor) -> float:
    """Largest difference over the largest value."""
    assert actual.shape == expected.shape
    return ((actual - expected).abs().max() / expected.abs().max()).item()
