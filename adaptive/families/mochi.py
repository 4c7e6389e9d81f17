"""Mochi 1: causal convolutions with replicate padding, group norms within each frame, no attention in the
decoder. Serves `AutoencoderKLMochi`.

diffusers' own framewise decoding pads with zeros where a whole decode replicates; here the padding is kept.
The encoder attends, within each position, to all earlier frames at several resolutions. Its key-value cache
grows with the video, but stays smaller than the activations of one encode call.
"""

from __future__ import annotations

from math import prod
from typing import TYPE_CHECKING, Any

from adaptive.errors import UnsupportedVae
from adaptive.families.shared.causal_family import CausalFamily
from adaptive.families.shared.rules import activation, pad_in_space
from adaptive.families.shared.traits import TraitsFromConfig, option

if TYPE_CHECKING:
    from torch import Tensor

    from adaptive.families.shared.rules import Forward
    from adaptive.stream.engines.chunk_pass import ChunkPass


class MochiFamily(CausalFamily):
    """`AutoencoderKLMochi`. Both networks return their frames and an unused cache."""

    name = "mochi"
    last_layer = "proj_out"
    traits_from_config = TraitsFromConfig(
        latent_channels=option("latent_channels", 12),
        spatial_ratio=lambda config: prod(config.get("spatial_expansions", (2, 2, 2))),
        temporal_ratio=lambda config: prod(config.get("temporal_expansions", (1, 2, 3))),
    )

    def check_layers(self, network: Any) -> None:
        """Attention looks back, as in the published encoder."""
        from adaptive.stream.layer_checks import check_processors

        check_processors(network, "Attention", frozenset({"MochiVaeAttnProcessor2_0"}))
        for layer in network.modules():
            if type(layer).__name__ == "Attention" and (not layer.is_causal or layer.residual_connection):
                raise UnsupportedVae(
                    type(network).__name__, "encoding in chunks through attention that is not causal"
                )

    def decoder_options(self, vae: Any) -> dict[str, Any]:
        """All but one of the frames that the first latent frame gives are dropped."""
        if not vae.drop_last_temporal_frames:
            raise UnsupportedVae(type(vae).__name__, "streaming with drop_last_temporal_frames switched off")
        decoder = vae.decoder
        blocks = [decoder.block_in, *decoder.up_blocks, decoder.block_out]
        return {
            "finish": _frames,
            "drop": self.traits_of(vae).temporal_ratio - 1,
            "stages": [stage for block in blocks for stage in (*block.resnets, block)],
        }

    def encoder_options(self, vae: Any) -> dict[str, Any]:
        """The usual ones, without the cache."""
        return {**super().encoder_options(vae), "finish": _frames}


def _frames(output: tuple[Tensor, Any]) -> Tensor:
    return output[0]


def _convolution(
    chunk_pass: ChunkPass, layer: Any, _forward: Forward, frames: Tensor, **_conv_cache: Any
) -> tuple[Tensor, None]:
    """The window in time first, then the padding in space, which the layer does together with it.

    The layer's own cache stays unused: the stream keeps the window.
    """
    window = chunk_pass.push_causal(layer, frames, layer.time_kernel_size, stride=layer.conv.stride[0])
    sides = (layer.width_pad, layer.width_pad, layer.height_pad, layer.height_pad)
    window = pad_in_space(window, sides, "replicate")  # frees the unpadded window
    return layer.conv(window), None


def _attention(chunk_pass: ChunkPass, layer: Any, _forward: Forward, tokens: Tensor) -> Tensor:
    """Attention over time, `[B*H*W, T, C]`, as in `MochiVaeAttnProcessor2_0`, with a key-value cache."""
    from adaptive.stream.engines.chunk_pass import attend_to_past

    query, key, value = (
        project(tokens).unflatten(-1, (layer.heads, -1)).transpose(1, 2).contiguous()
        for project in (layer.to_q, layer.to_k, layer.to_v)
    )
    keys, values = chunk_pass.extend_cache(layer, layer.norm_k(key), value, dim=2)
    mixed = attend_to_past(layer.norm_q(query), keys, values).transpose(1, 2).flatten(2)
    out: Tensor = layer.to_out[1](layer.to_out[0](mixed)) / layer.rescale_output_factor
    return out


FAMILY = MochiFamily(
    rules={"CogVideoXCausalConv3d": _convolution, "Attention": _attention, "SiLU": activation},
    framewise=frozenset(
        {
            "MochiDecoder3D", "MochiMidBlock3D", "MochiUpBlock3D", "MochiResnetBlock3D", "GroupNorm",
            "MochiChunkedGroupNorm3D", "CogVideoXSafeConv3d", "MochiEncoder3D", "MochiDownBlock3D",
            "FourierFeatures", "LpNorm", "Conv3d",
        }
    ),
)  # fmt: skip
