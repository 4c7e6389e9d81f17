"""Magvit, EasyAnimate's VAE: causal convolutions with replicate padding, norms within each frame.

The layers keep caches of their own between calls; here the stream keeps them, so streams interleave and any
number of latent frames goes through at a time. Torch is imported only where used.
"""

from __future__ import annotations

from collections.abc import Mapping
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
        "EasyAnimateDecoder", "EasyAnimateEncoder", "EasyAnimateMidBlock3d", "EasyAnimateUpBlock3d",
        "EasyAnimateDownBlock3D", "EasyAnimateResidualBlock3D", "EasyAnimateDownsampler3D",
        "GroupNorm", "Conv3d", "Dropout", "Identity", "ModuleList",
    }
)  # fmt: skip


class MagvitFamily(Family):
    """AutoencoderKLMagvit."""

    name = "magvit"
    proportional = True

    def traits(self, vae_class: str, config: Mapping[str, Any]) -> VaeTraits:
        """Every block but the last doubles both sides, all but two double time.

        Norms over time (`spatial_group_norm` off) make diffusers' own chunks part of the arithmetic: then
        only its own call is exact.
        """
        blocks = len(config.get("block_out_channels", (0,) * 4))
        return VaeTraits(
            family=self.name,
            vae_class=vae_class,
            latent_channels=config.get("latent_channels", 16),
            spatial_ratio=2 ** (blocks - 1),
            temporal_ratio=2 ** (blocks - 2),
            first_frame_alone=True,
            exact_streaming=bool(config.get("spatial_group_norm", True)),
            frames_independent=False,
        )

    def decode_engine(self, vae: Any, kwargs: Mapping[str, Any]) -> Engine:
        """The unmodified `vae.decoder` under this module's rules."""
        from adaptive.stream.engines.engine import RuledEngine
        from adaptive.stream.engines.stages import stages_of

        self._check(vae, kwargs)
        return RuledEngine(
            vae.decoder,
            rules=_RULES,
            pointwise=_POINTWISE,
            sink=vae.decoder.conv_out,
            kwargs={},
            begin=vae.post_quant_conv,  # a kernel of one frame
            stages=stages_of(vae.decoder),
        )

    def encode_engine(self, vae: Any, kwargs: Mapping[str, Any]) -> Engine:
        """The unmodified `vae.encoder` under this module's rules: the first frame, then whole latent
        frames.
        """
        from adaptive.stream.engines.engine import RuledEngine

        self._check(vae, kwargs)
        return RuledEngine(
            vae.encoder,
            rules=_RULES,
            pointwise=_POINTWISE,
            sink=vae.encoder.conv_out,
            kwargs={},
            finish=vae.quant_conv,  # a kernel of one frame
            group=vae.temporal_compression_ratio,
        )

    def _check(self, vae: Any, kwargs: Mapping[str, Any]) -> None:
        if kwargs or not vae.config.spatial_group_norm:
            raise UnsupportedVae(type(vae).__name__, "streaming with norms over time or further arguments")


def _conv(tick: Tick, module: Any, forward: Any, frames: Tensor) -> Tensor:  # noqa: ARG001 - replaced
    """Temporal window; the layer's padding in space is the convolution's own."""
    import torch.nn.functional as F

    size, stride = module.kernel_size[0], module.t_stride
    window = tick.push_causal(module, frames, size, stride=stride, left=module.temporal_padding)
    return F.conv3d(window, module.weight, module.bias, module.stride, module.padding)


def _upsample(tick: Tick, module: Any, forward: Any, frames: Tensor) -> Tensor:  # noqa: ARG001 - replaced
    """In time, the stream's first frame gives one frame and every later one two."""
    import torch
    import torch.nn.functional as F

    hidden: Tensor = module.conv(F.interpolate(frames, scale_factor=(1, 2, 2), mode="nearest"))
    if not module.temporal_upsample:
        return hidden
    if not tick.first(module):
        return hidden.repeat_interleave(2, dim=2)
    if hidden.shape[2] == 1:
        return hidden
    return torch.cat([hidden[:, :, :1], hidden[:, :, 1:].repeat_interleave(2, dim=2)], 2)


_RULES: Mapping[str, Rule] = {
    "EasyAnimateCausalConv3d": _conv,
    "EasyAnimateUpsampler3D": _upsample,
    "SiLU": activation,
}

FAMILY = MagvitFamily()
