"""Cosmos tokenizer: causal convolutions split in space and time, wavelet patches, norms within each frame.

Owns the streaming rules of its temporal layers, for decoder and encoder. Attention over time looks back, at
each position, to all earlier frames: their keys and values are kept, so the state grows with the video, by
two latent-sized activations a latent frame and attention. Torch is imported only where used.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import log2
from typing import TYPE_CHECKING, Any

from adaptive.errors import UnsupportedVae
from adaptive.families.ltx import channels_to_space, space_to_channels
from adaptive.families.shared.family import Family
from adaptive.types import VaeTraits

if TYPE_CHECKING:
    from torch import Tensor

    from adaptive.stream.engines.chunk_pass import Tick
    from adaptive.stream.engines.engine import Engine, Rule

_POINTWISE = frozenset(
    {
        "CosmosDecoder3d", "CosmosEncoder3d", "CosmosMidBlock3d", "CosmosUpBlock3d", "CosmosDownBlock3d",
        "CosmosResnetBlock3d", "CosmosConvProjection3d", "GroupNorm", "Identity", "Dropout", "ModuleList",
    }
)  # fmt: skip


class CosmosFamily(Family):
    """AutoencoderKLCosmos."""

    name = "cosmos"
    has_variance = False

    def traits(self, vae_class: str, config: Mapping[str, Any]) -> VaeTraits:
        """The configuration names both ratios, patches included."""
        return VaeTraits(
            family=self.name,
            vae_class=vae_class,
            latent_channels=config.get("latent_channels", 16),
            spatial_ratio=config.get("spatial_compression_ratio", 8),
            temporal_ratio=config.get("temporal_compression_ratio", 8),
            first_frame_alone=True,
            exact_streaming=True,
            frames_independent=False,
        )

    def decode_engine(self, vae: Any, kwargs: Mapping[str, Any]) -> Engine:
        """The unmodified `vae.decoder` under this module's rules."""
        from adaptive.stream.engines.engine import RuledEngine
        from adaptive.stream.engines.stages import stages_of

        if kwargs:
            raise UnsupportedVae(type(vae).__name__, f"decoding with {', '.join(kwargs)}")
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

        if kwargs:
            raise UnsupportedVae(type(vae).__name__, f"encoding with {', '.join(kwargs)}")
        return RuledEngine(
            vae.encoder,
            rules=_RULES,
            pointwise=_POINTWISE,
            sink=vae.encoder.conv_out,
            kwargs={},
            finish=vae.quant_conv,  # a kernel of one frame
            group=self.traits(type(vae).__name__, vae.config).temporal_ratio,
        )


def _conv(tick: Tick, module: Any, forward: Any, frames: Tensor) -> Tensor:
    """Temporal window first, then the padding in space that the layer does together with it."""
    import torch.nn.functional as F

    if module.kernel_size[0] == 1:
        return forward(frames)  # type: ignore[no-any-return]
    size, stride = module.kernel_size[0], module.stride[0]
    window = tick.push_causal(module, frames, size, stride=stride, left=module.temporal_pad)
    if any(module.spatial_pad):
        window = F.pad(window, (*module.spatial_pad, 0, 0), mode=module.pad_mode)
    return F.conv3d(window, module.weight, module.bias, module.stride, 0, module.dilation)


def _norm(tick: Tick, module: Any, forward: Any, frames: Tensor) -> Tensor:  # noqa: ARG001 - a guard
    """One group is normed frame by frame; several would be normed over time."""
    if module.num_groups != 1:
        raise UnsupportedVae("CosmosCausalGroupNorm", f"streaming with {module.num_groups} groups")
    return forward(frames)  # type: ignore[no-any-return]


def _upsample(tick: Tick, module: Any, forward: Any, frames: Tensor) -> Tensor:
    """In time, the stream's first frame gives one frame and every later one two."""
    if not module.temporal_upsample or tick.first(module):
        return forward(frames)  # type: ignore[no-any-return]
    doubled = frames.repeat_interleave(2, dim=2)
    hidden = module.conv1(doubled).add_(doubled)
    del doubled
    if module.spatial_upsample:
        hidden = hidden.repeat_interleave(2, dim=3).repeat_interleave(2, dim=4)
        hidden = module.conv2(hidden).add_(hidden)
    out: Tensor = module.conv3(hidden)
    return out


def _downsample(tick: Tick, module: Any, forward: Any, frames: Tensor) -> Tensor:
    """In time, the stream's first frame gives one frame and every later pair one."""
    import torch.nn.functional as F

    if not module.temporal_downsample or tick.first(module):
        return forward(frames)  # type: ignore[no-any-return]
    if module.spatial_downsample:
        padded = F.pad(frames, (0, 1, 0, 1, 0, 0))
        frames = module.conv1(padded) + F.avg_pool3d(padded, kernel_size=(1, 2, 2), stride=(1, 2, 2))
    pooled = F.avg_pool3d(frames, kernel_size=(2, 1, 1), stride=(2, 1, 1))
    out: Tensor = module.conv3(module.conv2(frames) + pooled)
    return out


def _attention(tick: Tick, module: Any, forward: Any, frames: Tensor, mask: Any = None) -> Tensor:
    """Attention within a frame stays as it is; attention over time (`[B*H*W, 1, T, C]`) remembers."""
    from adaptive.stream.engines.chunk_pass import attend_to_past

    if type(module.processor).__name__ == "CosmosSpatialAttentionProcessor2_0":
        return forward(frames, mask)  # type: ignore[no-any-return]
    batch, _, _, height, width = frames.shape
    normed = module.norm(frames)
    query, key, value = (
        project(normed).permute(0, 3, 4, 2, 1).flatten(0, 2).unflatten(2, (module.num_attention_heads, -1))
        for project in (module.to_q, module.to_k, module.to_v)
    )
    key, value = key.transpose(1, 2).contiguous(), value.transpose(1, 2).contiguous()
    keys, values = tick.remember(module, key, value, dim=2)
    mixed = attend_to_past(query.transpose(1, 2), keys, values).transpose(1, 2).flatten(2)
    mixed = mixed.reshape(batch, height, width, *mixed.shape[1:]).permute(0, 4, 3, 1, 2)
    out: Tensor = module.to_out[1](module.to_out[0](mixed))
    return out + frames


def _unpatch(tick: Tick, module: Any, forward: Any, patches: Tensor) -> Tensor:
    """Patches span whole frames; only what the stream's first one gives beyond one frame is dropped."""
    if tick.first(module):
        return forward(patches).clone()  # type: ignore[no-any-return]  # or the dropped frames would stay
    size = module.patch_size
    if module.patch_method == "rearrange":
        return channels_to_space(patches, (size, size, size))
    for _ in range(int(log2(size))):
        patches = module._idwt(patches, rescale=True)
    return patches


def _patch(tick: Tick, module: Any, forward: Any, frames: Tensor) -> Tensor:
    """The stream's first frame is repeated to fill a patch; later patches are whole."""
    if tick.first(module):
        return forward(frames)  # type: ignore[no-any-return]
    size = module.patch_size
    if module.patch_method == "rearrange":
        return space_to_channels(frames, (size, size, size))
    for _ in range(int(log2(size))):
        frames = module._dwt(frames, rescale=True)
    return frames


_RULES: Mapping[str, Rule] = {
    "CosmosCausalConv3d": _conv,
    "CosmosCausalGroupNorm": _norm,
    "CosmosUpsample3d": _upsample,
    "CosmosDownsample3d": _downsample,
    "CosmosCausalAttention": _attention,
    "CosmosUnpatcher3d": _unpatch,
    "CosmosPatchEmbed3d": _patch,
}

FAMILY = CosmosFamily()
