"""What the decode benchmark measures: published configurations, a small shape, diffusers' best way.

Owns configurations and the settings with which diffusers saves memory. Must not know how it is measured.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import diffusers
import torch
from torch import Tensor

Call = Callable[[Any, Tensor, dict[str, Any]], Iterator[Tensor]]


def _one_call(vae: Any, latents: Tensor, kwargs: dict[str, Any]) -> Iterator[Tensor]:
    yield vae.decode(latents, **kwargs).sample


def _folded(vae: Any, latents: Tensor, kwargs: dict[str, Any]) -> Iterator[Tensor]:
    """A 2D autoencoder takes a video's frames as its batch, and slicing takes that apart again."""
    decoded = vae.decode(latents.transpose(1, 2).flatten(0, 1), **kwargs).sample
    yield decoded.unflatten(0, (latents.shape[0], -1)).transpose(1, 2)


def _svd_pipeline(frames: int) -> Call:
    """What `StableVideoDiffusionPipeline` does with `decode_chunk_size`: each chunk as a separate video."""

    def call(vae: Any, latents: Tensor, kwargs: dict[str, Any]) -> Iterator[Tensor]:
        for part in latents.split(frames, 2):
            yield from _folded(vae, part, {**kwargs, "num_frames": part.shape[2]})

    return call


@dataclass(frozen=True, slots=True)
class Frugal:
    """A setting of diffusers that saves memory: attributes while it holds, and how it is called."""

    name: str
    attributes: dict[str, Any]
    decode: Call = _one_call

    @contextmanager
    def applied(self, vae: Any) -> Iterator[None]:
        """The VAE with this setting, and as it was afterwards."""
        before = {name: getattr(vae, name) for name in self.attributes}
        self._set(vae, self.attributes)
        try:
            yield
        finally:
            self._set(vae, before)

    @staticmethod
    def _set(vae: Any, attributes: dict[str, Any]) -> None:
        for name, value in attributes.items():
            setattr(vae, name, value)


def _tiles(side: int, stride: int) -> Frugal:
    """Tiles of `side` pixels, `stride` apart.

    Pictures here are smaller than diffusers' default tiles (256 or 512 pixels), so tiles shrink with them.
    """
    attributes = {
        "use_tiling": True,
        "tile_sample_min_height": side,
        "tile_sample_min_width": side,
        "tile_sample_stride_height": stride,
        "tile_sample_stride_width": stride,
    }
    return Frugal("tiling", attributes)


FRAMEWISE = Frugal("framewise", {"use_framewise_decoding": True})


@dataclass(frozen=True, slots=True)
class Case:
    """A published configuration, a latent shape `[B, C, T, h, w]` for it, and what it is compared with."""

    vae_class: str
    config: dict[str, Any]
    latents: tuple[int, int, int, int, int]
    frugal: Frugal | None
    kwargs: dict[str, Any] = field(default_factory=dict)
    chunks: tuple[int, ...] = (1, 2, 4)


def build(case: Case, device: str) -> Any:
    """The VAE with random weights."""
    torch.manual_seed(0)
    with torch.device(device):
        vae = getattr(diffusers, case.vae_class)(**case.config).eval()
    return vae.to(device)  # some parameters ignore the context


_LTX_095 = {
    "block_out_channels": (128, 256, 512, 1024, 2048),
    "down_block_types": ("LTXVideo095DownBlock3D",) * 4,
    "decoder_block_out_channels": (256, 512, 1024),
    "layers_per_block": (4, 6, 6, 2, 2),
    "decoder_layers_per_block": (5, 5, 5, 5),
    "spatio_temporal_scaling": (True, True, True, True),
    "decoder_spatio_temporal_scaling": (True, True, True),
    "decoder_inject_noise": (False, False, False, False),
    "downsample_type": ("spatial", "temporal", "spatiotemporal", "spatiotemporal"),
    "upsample_residual": (True, True, True),
    "upsample_factor": (2, 2, 2),
    "timestep_conditioning": True,
    "spatial_compression_ratio": 32,
    "temporal_compression_ratio": 8,
}
_WAN_22 = {
    "base_dim": 160,
    "decoder_base_dim": 256,
    "z_dim": 48,
    "temperal_downsample": [False, True, True],
    "is_residual": True,
    "in_channels": 12,
    "out_channels": 12,
    "patch_size": 2,
    "scale_factor_spatial": 16,
    "latents_mean": (0.0,) * 48,
    "latents_std": (1.0,) * 48,
}
_LDM = {"block_out_channels": (128, 256, 512, 512), "layers_per_block": 2}
_DOWN = {"down_block_types": ("DownEncoderBlock2D",) * 4}
_UP = {"up_block_types": ("UpDecoderBlock2D",) * 4}

CASES = {
    "ltx-0.9.0": Case("AutoencoderKLLTXVideo", {}, (1, 128, 13, 2, 3), FRAMEWISE),
    # Four times the pixels, half the frames: what a chunk costs besides its frames weighs less.
    "ltx-0.9.0 at 192x128": Case("AutoencoderKLLTXVideo", {}, (1, 128, 7, 4, 6), FRAMEWISE),
    "ltx-0.9.5": Case(
        "AutoencoderKLLTXVideo", _LTX_095, (1, 128, 5, 2, 2), FRAMEWISE, {"temb": torch.tensor([0.05])}
    ),
    "ltx-2": Case(
        "AutoencoderKLLTX2Video",
        # The class's default, a causal decoder; that of the published model is not causal.
        {"spatial_compression_ratio": 32, "temporal_compression_ratio": 8},
        (1, 128, 7, 2, 2),
        FRAMEWISE,
    ),
    "wan-2.1": Case("AutoencoderKLWan", {}, (1, 16, 3, 8, 8), _tiles(32, 24), chunks=(1, 2)),
    "wan-2.2": Case("AutoencoderKLWan", _WAN_22, (1, 48, 3, 3, 3), _tiles(32, 16), chunks=(1, 2)),
    "qwen-image": Case("AutoencoderKLQwenImage", {}, (1, 16, 3, 8, 8), _tiles(32, 24), chunks=(1, 2)),
    "cosmos": Case("AutoencoderKLCosmos", {}, (1, 16, 5, 8, 8), None),  # diffusers' flags have no effect
    "cogvideox": Case(
        "AutoencoderKLCogVideoX",
        {},
        (1, 16, 4, 5, 5),
        Frugal(
            "tiling",
            {"use_tiling": True, "tile_latent_min_height": 4, "tile_latent_min_width": 4}
            | {"tile_sample_min_height": 32, "tile_sample_min_width": 32}
            | {"tile_overlap_factor_height": 0.25, "tile_overlap_factor_width": 0.25},
        ),
        chunks=(2,),  # its own schedule of two frames is the reference
    ),
    "hunyuanvideo-1.0": Case("AutoencoderKLHunyuanVideo", {}, (1, 16, 7, 4, 4), FRAMEWISE),
    # 1.3 billion parameters: this small a picture is one tile.
    "hunyuanvideo-1.5": Case("AutoencoderKLHunyuanVideo15", {}, (1, 32, 3, 3, 3), None, chunks=(1, 2)),
    "mochi": Case("AutoencoderKLMochi", {}, (1, 12, 6, 3, 3), FRAMEWISE),
    "magvit": Case("AutoencoderKLMagvit", {}, (1, 16, 5, 4, 4), FRAMEWISE),
    "svd": Case(
        "AutoencoderKLTemporalDecoder",
        _LDM | _DOWN,
        (1, 4, 8, 6, 8),
        Frugal("decode_chunk_size=4", {}, _svd_pipeline(4)),
    ),
    "sd-vae": Case(
        "AutoencoderKL",
        _LDM | _DOWN | _UP,
        (1, 4, 8, 6, 8),
        Frugal("slicing", {"use_slicing": True}, _folded),
    ),
}
