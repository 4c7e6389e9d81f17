"""Mochi 1: causal convolutions with replicate padding, norms within each frame, no attention in its decoder.

Its own framewise decoding pads chunks with zeros where the whole decode replicates; here the padding is kept.
Its encoder attends, within each position, to all earlier frames at several resolutions: their keys and values
are kept, so an encode's state grows with the video, by less than the activations of encoding it in one call.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from typing import TYPE_CHECKING, Any

from adaptive.errors import UnsupportedVae
from adaptive.families.shared.family import Family, activation
from adaptive.types import VaeTraits

if TYPE_CHECKING:
    from torch import Tensor

    from adaptive.stream.engines.chunk_pass import Tick
    from adaptive.stream.engines.engine import Engine, Rule

_POINTWISE = frozenset(
    {
        "MochiDecoder3D", "MochiMidBlock3D", "MochiUpBlock3D", "MochiResnetBlock3D",
        "MochiChunkedGroupNorm3D", "GroupNorm", "CogVideoXSafeConv3d",
        "MochiEncoder3D", "MochiDownBlock3D", "FourierFeatures", "LpNorm", "Dropout",
        "Conv3d", "Linear", "ModuleList",
    }
)  # fmt: skip


class MochiFamily(Family):
    """AutoencoderKLMochi."""

    name = "mochi"

    def traits(self, vae_class: str, config: Mapping[str, Any]) -> VaeTraits:
        """Expansions multiply; what the first latent frame gives in excess of one frame is dropped."""
        return VaeTraits(
            family=self.name,
            vae_class=vae_class,
            latent_channels=config.get("latent_channels", 12),
            spatial_ratio=prod(config.get("spatial_expansions", (2, 2, 2))),
            temporal_ratio=prod(config.get("temporal_expansions", (1, 2, 3))),
            first_frame_alone=True,
            exact_streaming=True,
            frames_independent=False,
        )

    def decode_engine(self, vae: Any, kwargs: Mapping[str, Any]) -> Engine:
        """The unmodified `vae.decoder` under this module's rule."""
        from adaptive.stream.engines.engine import RuledEngine

        if kwargs or not vae.drop_last_temporal_frames:
            raise UnsupportedVae(type(vae).__name__, "streaming with these arguments")
        return RuledEngine(
            vae.decoder,
            rules=_RULES,
            pointwise=_POINTWISE,
            sink=vae.decoder.proj_out,
            kwargs={},
            finish=lambda output: output[0],  # the second part is an unused cache
            drop=self.traits(type(vae).__name__, vae.config).temporal_ratio - 1,
            stages=_stages(vae.decoder),
        )

    def encode_engine(self, vae: Any, kwargs: Mapping[str, Any]) -> Engine:
        """The unmodified `vae.encoder` under this module's rules: the first frame, then whole latent
        frames.
        """
        from adaptive.stream.engines.engine import RuledEngine

        if kwargs:
            raise UnsupportedVae(type(vae).__name__, f"encoding with {', '.join(kwargs)}")
        return RuledEngine(
            vae.encoder,
            rules=_RULES,
            pointwise=_POINTWISE,
            sink=vae.encoder.proj_out,
            kwargs={},
            finish=lambda output: output[0],
            group=self.traits(type(vae).__name__, vae.config).temporal_ratio,
        )


def _stages(decoder: Any) -> list[Any]:
    """Each residual block, and each block of them with what follows inside it."""
    blocks = [decoder.block_in, *decoder.up_blocks, decoder.block_out]
    return [stage for block in blocks for stage in (*block.resnets, block)]


def _conv(
    tick: Tick,
    module: Any,
    forward: Any,  # noqa: ARG001 - replaced
    frames: Tensor,
    conv_cache: Any = None,  # noqa: ARG001 - the stream's own state serves
) -> tuple[Tensor, None]:
    """Temporal window first, then the padding in space that the layer does together with it."""
    import torch.nn.functional as F

    size, stride = module.time_kernel_size, module.conv.stride[0]
    window = tick.push_causal(module, frames, size, stride=stride)
    sides = (module.width_pad, module.width_pad, module.height_pad, module.height_pad, 0, 0)
    window = F.pad(window, sides, mode="replicate")  # the unpadded one goes
    return module.conv(window), None


def _attention(tick: Tick, module: Any, forward: Any, tokens: Tensor) -> Tensor:  # noqa: ARG001 - replaced
    """Attention over time, `[B*H*W, T, C]`: what `MochiVaeAttnProcessor2_0` computes, with earlier frames
    remembered.
    """
    from adaptive.stream.engines.chunk_pass import attend_to_past

    if not module.is_causal or module.residual_connection:
        raise UnsupportedVae("MochiEncoder3D", "encoding in chunks through attention that looks ahead")
    query, key, value = (
        project(tokens).unflatten(-1, (module.heads, -1)).transpose(1, 2).contiguous()
        for project in (module.to_q, module.to_k, module.to_v)
    )
    keys, values = tick.remember(module, module.norm_k(key), value, dim=2)
    mixed = attend_to_past(module.norm_q(query), keys, values).transpose(1, 2).flatten(2)
    out: Tensor = module.to_out[1](module.to_out[0](mixed)) / module.rescale_output_factor
    return out


_RULES: Mapping[str, Rule] = {"CogVideoXCausalConv3d": _conv, "Attention": _attention, "SiLU": activation}

FAMILY = MochiFamily()
