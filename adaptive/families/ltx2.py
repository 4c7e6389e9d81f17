"""LTX-2's video VAE: the layers of LTX-Video with other norms and paddings. `causal` is an argument of each
call. Serves `AutoencoderKLLTX2Video`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from adaptive.families.ltx import LtxFamily, no_patches_in_time
from adaptive.families.shared.traits import Config, TraitsFromConfig, option

if TYPE_CHECKING:
    from torch import Tensor

    from adaptive.families.shared.rules import Forward
    from adaptive.stream.engines.chunk_pass import ChunkPass


def _doublings(config: Config, other: str) -> int:
    """Number of decoder blocks that double time or space, as all do whose type is not `other`."""
    types = config.get("upsample_type", ("spatiotemporal",) * 3)
    scaling = config.get("decoder_spatio_temporal_scaling", True)
    scaled = (scaling,) * len(types) if isinstance(scaling, bool) else tuple(scaling)
    used = [kind for kind, is_scaled in zip(types, reversed(scaled), strict=True) if is_scaled]
    return sum(kind != other for kind in used)


class Ltx2Family(LtxFamily):
    """`AutoencoderKLLTX2Video`."""

    name = "ltx2"
    layer_prefix = "LTX2Video"
    proportional = False  # reflected borders are copies
    traits_from_config = TraitsFromConfig(
        latent_channels=option("latent_channels", 128),
        spatial_ratio=lambda config: config.get("patch_size", 4) * 2 ** _doublings(config, "temporal"),
        temporal_ratio=lambda config: config.get("patch_size_t", 1) * 2 ** _doublings(config, "spatial"),
        exact_streaming=no_patches_in_time,
    )


def _plain_convolution(chunk_pass: ChunkPass, layer: Any, forward: Forward, frames: Tensor) -> Tensor:
    """The convolution of a shortcut, or the one inside a temporal convolution.

    The latter pads by a copy, so that its unpadded frames can be released early.
    """
    from torch.nn.functional import conv3d, pad

    if not frames.shape[2]:
        return chunk_pass.as_branch(layer, chunk_pass.empty_output(frames, layer))
    if layer.padding_mode == "zeros":
        return chunk_pass.as_branch(layer, forward(frames))
    depth, height, width = layer.padding
    padded = pad(frames, (width, width, height, height, depth, depth), mode=layer.padding_mode)
    chunk_pass.early_release.release_if_marked(frames)
    mixed = conv3d(padded, layer.weight, layer.bias, layer.stride, 0, layer.dilation, layer.groups)
    return chunk_pass.as_branch(layer, mixed)


FAMILY = Ltx2Family({"Conv3d": _plain_convolution}, frozenset({"PerChannelRMSNorm"}))
