"""Magvit, the VAE of EasyAnimate: causal convolutions with replicate padding, group norms within each frame.
Serves `AutoencoderKLMagvit`.

The layers keep caches between calls. Here the stream keeps them instead, so that streams can interleave and
a chunk can have any number of latent frames.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from adaptive.families.shared.causal_family import CausalFamily
from adaptive.families.shared.rules import activation
from adaptive.families.shared.traits import TraitsFromConfig, doubling_blocks, option

if TYPE_CHECKING:
    from torch import Tensor

    from adaptive.families.shared.rules import Forward
    from adaptive.stream.engines.chunk_pass import ChunkPass


class MagvitFamily(CausalFamily):
    """`AutoencoderKLMagvit`. With norms over time, only diffusers' own chunks give the reference result."""

    name = "magvit"
    proportional = True
    inexact_with = "norms over time"
    traits_from_config = TraitsFromConfig(
        latent_channels=option("latent_channels", 16),
        spatial_ratio=doubling_blocks(4),
        temporal_ratio=doubling_blocks(4, fewer=2),
        exact_streaming=option("spatial_group_norm", True),
    )

    def encode_whole(self, vae: Any, video: Tensor, kwargs: Mapping[str, Any]) -> Tensor:
        """See `Family`; frames that a failed call left in the layers would enter the next one."""
        try:
            return super().encode_whole(vae, video, kwargs)
        finally:
            vae._clear_conv_cache()

    def decode_whole(self, vae: Any, latents: Tensor, kwargs: Mapping[str, Any]) -> Tensor:
        """See `encode_whole`."""
        try:
            return super().decode_whole(vae, latents, kwargs)
        finally:
            vae._clear_conv_cache()


def _convolution(chunk_pass: ChunkPass, layer: Any, _forward: Forward, frames: Tensor) -> Tensor:
    """The window in time; the convolution itself pads in space."""
    from torch.nn.functional import conv3d

    size, stride = layer.kernel_size[0], layer.t_stride
    window = chunk_pass.push_causal(layer, frames, size, stride=stride, left=layer.temporal_padding)
    return conv3d(window, layer.weight, layer.bias, layer.stride, layer.padding)


def _upsample(chunk_pass: ChunkPass, layer: Any, _forward: Forward, frames: Tensor) -> Tensor:
    """In time, the first frame of the stream gives one frame, every later frame two."""
    import torch
    from torch.nn.functional import interpolate

    hidden: Tensor = layer.conv(interpolate(frames, scale_factor=(1, 2, 2), mode="nearest"))
    if not layer.temporal_upsample:
        return hidden
    if not chunk_pass.first(layer):
        return hidden.repeat_interleave(2, dim=2)
    if hidden.shape[2] == 1:
        return hidden
    return torch.cat([hidden[:, :, :1], hidden[:, :, 1:].repeat_interleave(2, dim=2)], 2)


FAMILY = MagvitFamily(
    rules={"EasyAnimateCausalConv3d": _convolution, "EasyAnimateUpsampler3D": _upsample, "SiLU": activation},
    framewise=frozenset(
        {
            "EasyAnimateDecoder", "EasyAnimateEncoder", "EasyAnimateMidBlock3d", "EasyAnimateUpBlock3d",
            "EasyAnimateDownBlock3D", "EasyAnimateResidualBlock3D", "EasyAnimateDownsampler3D",
            "GroupNorm", "Conv3d",
        }
    ),
)  # fmt: skip
