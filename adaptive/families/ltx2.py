"""LTX-2's video VAE: LTX-Video's layers, told at each call whether to be causal, with other norms and
paddings.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from adaptive.families.ltx import LtxFamily, conv, downsampler, resnet, upsampler
from adaptive.families.shared.family import activation
from adaptive.types import VaeTraits

if TYPE_CHECKING:
    from torch import Tensor

    from adaptive.stream.engines.chunk_pass import Tick

_POINTWISE = frozenset(
    {
        "LTX2VideoDecoder3d", "LTX2VideoMidBlock3d", "LTX2VideoUpBlock3d", "LTX2VideoEncoder3d",
        "LTX2VideoDownBlock3D", "PerChannelRMSNorm", "LayerNorm", "Dropout", "ModuleList", "Linear",
        "PixArtAlphaCombinedTimestepSizeEmbeddings", "Timesteps", "TimestepEmbedding",
    }
)  # fmt: skip


class Ltx2Family(LtxFamily):
    """AutoencoderKLLTX2Video."""

    name = "ltx2"

    def traits(self, vae_class: str, config: Mapping[str, Any]) -> VaeTraits:
        """Each scaled block of the decoder doubles time, space, or both, by its type."""
        types = config.get("upsample_type", ("spatiotemporal",) * 3)
        scaling = config.get("decoder_spatio_temporal_scaling", True)
        scaled = (scaling,) * len(types) if isinstance(scaling, bool) else tuple(scaling)
        used = [kind for kind, is_scaled in zip(types, reversed(scaled), strict=True) if is_scaled]
        patch_frames = config.get("patch_size_t", 1)
        return VaeTraits(
            family=self.name,
            vae_class=vae_class,
            latent_channels=config.get("latent_channels", 128),
            spatial_ratio=config.get("patch_size", 4) * 2 ** sum(kind != "temporal" for kind in used),
            temporal_ratio=patch_frames * 2 ** sum(kind != "spatial" for kind in used),
            first_frame_alone=True,
            exact_streaming=patch_frames == 1,
            frames_independent=False,
        )


def _plain_conv(tick: Tick, module: Any, forward: Any, frames: Tensor) -> Tensor:
    """A shortcut's convolution is an ordinary one; those inside temporal ones never see empty input.

    Theirs pads by copying, so the unpadded frames need not stay while it runs.
    """
    import torch.nn.functional as F

    if not frames.shape[2]:
        return tick.as_branch(module, tick.no_frames(frames, module))
    if module.padding_mode == "zeros":
        return tick.as_branch(module, forward(frames))
    depth, height, width = module.padding
    padded = F.pad(frames, (width, width, height, height, depth, depth), mode=module.padding_mode)
    tick.spending.spend(frames)
    mixed = F.conv3d(padded, module.weight, module.bias, module.stride, 0, module.dilation, module.groups)
    return tick.as_branch(module, mixed)


FAMILY = Ltx2Family(
    {
        "Conv3d": _plain_conv,
        "LTX2VideoCausalConv3d": conv,
        "LTX2VideoResnetBlock3d": resnet,
        "LTX2VideoUpsampler3d": upsampler,
        "LTX2VideoDownsampler3d": downsampler,
        "SiLU": activation,
    },
    _POINTWISE,
)
