"""Mochi 1: causal convolutions with replicate padding, norms within each frame, no attention in its decoder.

Its own framewise decoding pads chunks with zeros where the whole decode replicates; here the padding is kept.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from typing import TYPE_CHECKING, Any

from adaptive.errors import UnsupportedVae
from adaptive.families.family import Family
from adaptive.types import VaeTraits

if TYPE_CHECKING:
    from torch import Tensor

    from adaptive.stream.engine import Engine
    from adaptive.stream.tick import Tick

_POINTWISE = frozenset(
    {
        "MochiDecoder3D", "MochiMidBlock3D", "MochiUpBlock3D", "MochiResnetBlock3D",
        "MochiChunkedGroupNorm3D", "GroupNorm", "CogVideoXSafeConv3d",
        "Conv3d", "Linear", "SiLU", "ModuleList",
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
        from adaptive.stream.engine import RuledEngine

        if kwargs or not vae.drop_last_temporal_frames:
            raise UnsupportedVae(type(vae).__name__, "streaming with these arguments")
        drop = self.traits(type(vae).__name__, vae.config).temporal_ratio - 1

        def finish(output: tuple[Tensor, Any], first: bool) -> Tensor:
            return output[0][:, :, drop:].clone() if first else output[0]

        return RuledEngine(
            vae.decoder,
            rules={"CogVideoXCausalConv3d": _conv},
            pointwise=_POINTWISE,
            sink=vae.decoder.proj_out,
            kwargs={},
            finish=finish,
        )


def _conv(
    tick: Tick,
    module: Any,
    forward: Any,  # noqa: ARG001 - replaced
    frames: Tensor,
    conv_cache: Any = None,  # noqa: ARG001 - the stream's own state serves
) -> tuple[Tensor, None]:
    """Temporal window first, then the padding in space that the layer does together with it."""
    import torch.nn.functional as F

    window = tick.push_causal(module, frames, module.time_kernel_size)
    sides = (module.width_pad, module.width_pad, module.height_pad, module.height_pad, 0, 0)
    return module.conv(F.pad(window, sides, mode="replicate")), None


FAMILY = MochiFamily()
