"""The Cosmos tokenizer: causal convolutions split into space and time, wavelet patches, group norms within
each frame. Serves `AutoencoderKLCosmos`.

Attention over time looks back, at each position, to all earlier frames. Its key-value cache grows with the
video: by two latent-sized activations for each latent frame and attention layer.
"""

from __future__ import annotations

from math import log2
from typing import TYPE_CHECKING, Any

from adaptive.errors import UnsupportedVae
from adaptive.families.shared.causal_family import CausalFamily
from adaptive.families.shared.rules import channels_to_space, pad_in_space, space_to_channels
from adaptive.families.shared.traits import named_ratios

if TYPE_CHECKING:
    from torch import Tensor

    from adaptive.families.shared.rules import Forward
    from adaptive.stream.engines.chunk_pass import ChunkPass


class CosmosFamily(CausalFamily):
    """`AutoencoderKLCosmos`; both ratios in the configuration include the patches."""

    name = "cosmos"
    has_variance = False
    traits_from_config = named_ratios(latent_channels=16, spatial_ratio=8, temporal_ratio=8)

    def check_layers(self, network: Any) -> None:
        """One group is normed frame by frame; several groups would be normed over time."""
        from adaptive.stream.layer_checks import check_processors

        check_processors(network, "CosmosCausalAttention", frozenset({_IN_SPACE, _IN_TIME}))
        for layer in network.modules():
            if type(layer).__name__ == "CosmosCausalGroupNorm" and layer.num_groups != 1:
                raise UnsupportedVae("CosmosCausalGroupNorm", f"streaming with {layer.num_groups} groups")


_IN_SPACE, _IN_TIME = "CosmosSpatialAttentionProcessor2_0", "CosmosTemporalAttentionProcessor2_0"


def _convolution(chunk_pass: ChunkPass, layer: Any, forward: Forward, frames: Tensor) -> Tensor:
    """The window in time first, then the padding in space, which the layer does together with it."""
    from torch.nn.functional import conv3d

    size, stride = layer.kernel_size[0], layer.stride[0]
    if size == 1:
        return forward(frames)
    window = chunk_pass.push_causal(layer, frames, size, stride=stride, left=layer.temporal_pad)
    if any(layer.spatial_pad):
        window = pad_in_space(window, layer.spatial_pad, layer.pad_mode)
    return conv3d(window, layer.weight, layer.bias, layer.stride, 0, layer.dilation)


def _upsample(chunk_pass: ChunkPass, layer: Any, forward: Forward, frames: Tensor) -> Tensor:
    """In time, the first frame of the stream gives one frame, every later frame two."""
    if not layer.temporal_upsample or chunk_pass.first(layer):
        return forward(frames)
    doubled = frames.repeat_interleave(2, dim=2)
    hidden = layer.conv1(doubled).add_(doubled)
    del doubled
    if layer.spatial_upsample:
        hidden = hidden.repeat_interleave(2, dim=3).repeat_interleave(2, dim=4)
        hidden = layer.conv2(hidden).add_(hidden)
    out: Tensor = layer.conv3(hidden)
    return out


def _downsample(chunk_pass: ChunkPass, layer: Any, forward: Forward, frames: Tensor) -> Tensor:
    """In time, the first frame of the stream gives one frame, every later pair one."""
    from torch.nn.functional import avg_pool3d, pad

    if not layer.temporal_downsample or chunk_pass.first(layer):
        return forward(frames)
    if layer.spatial_downsample:
        padded = pad(frames, (0, 1, 0, 1, 0, 0))
        frames = layer.conv1(padded) + avg_pool3d(padded, kernel_size=(1, 2, 2), stride=(1, 2, 2))
    pooled = avg_pool3d(frames, kernel_size=(2, 1, 1), stride=(2, 1, 1))
    out: Tensor = layer.conv3(layer.conv2(frames) + pooled)
    return out


def _attention(
    chunk_pass: ChunkPass, layer: Any, forward: Forward, frames: Tensor, mask: Any = None
) -> Tensor:
    """Attention within a frame is unchanged; attention over time (`[B*H*W, 1, T, C]`) uses a cache."""
    from adaptive.stream.engines.chunk_pass import attend_to_past

    if type(layer.processor).__name__ == _IN_SPACE:
        return forward(frames, mask)
    batch, _, _, height, width = frames.shape
    normed = layer.norm(frames)
    query, key, value = (
        project(normed).permute(0, 3, 4, 2, 1).flatten(0, 2).unflatten(2, (layer.num_attention_heads, -1))
        for project in (layer.to_q, layer.to_k, layer.to_v)
    )
    key, value = key.transpose(1, 2).contiguous(), value.transpose(1, 2).contiguous()
    keys, values = chunk_pass.extend_cache(layer, key, value, dim=2)
    mixed = attend_to_past(query.transpose(1, 2), keys, values).transpose(1, 2).flatten(2)
    mixed = mixed.reshape(batch, height, width, *mixed.shape[1:]).permute(0, 4, 3, 1, 2)
    out: Tensor = layer.to_out[1](layer.to_out[0](mixed))
    return out + frames


def _unpatch(chunk_pass: ChunkPass, layer: Any, forward: Forward, patches: Tensor) -> Tensor:
    """A patch spans several frames. Of the first patch of the stream, only the last frame is kept."""
    if chunk_pass.first(layer):
        return forward(patches).clone()  # a view would keep the dropped frames in memory
    if layer.patch_method == "rearrange":
        return channels_to_space(patches, (layer.patch_size,) * 3)
    return _wavelet_levels(layer._idwt, patches, layer.patch_size)


def _patch(chunk_pass: ChunkPass, layer: Any, forward: Forward, frames: Tensor) -> Tensor:
    """The first frame of the stream is repeated to fill a patch; later patches are whole."""
    if chunk_pass.first(layer):
        return forward(frames)
    if layer.patch_method == "rearrange":
        return space_to_channels(frames, (layer.patch_size,) * 3)
    return _wavelet_levels(layer._dwt, frames, layer.patch_size)


def _wavelet_levels(transform: Any, frames: Tensor, patch_size: int) -> Tensor:
    """Each level of the wavelet transform halves or doubles all sides."""
    for _ in range(int(log2(patch_size))):
        frames = transform(frames, rescale=True)
    return frames


FAMILY = CosmosFamily(
    rules={
        "CosmosCausalConv3d": _convolution,
        "CosmosUpsample3d": _upsample,
        "CosmosDownsample3d": _downsample,
        "CosmosCausalAttention": _attention,
        "CosmosUnpatcher3d": _unpatch,
        "CosmosPatchEmbed3d": _patch,
    },
    framewise=frozenset(
        {
            "CosmosDecoder3d", "CosmosEncoder3d", "CosmosMidBlock3d", "CosmosUpBlock3d", "CosmosDownBlock3d",
            "CosmosResnetBlock3d", "CosmosConvProjection3d", "CosmosCausalGroupNorm", "GroupNorm",
        }
    ),
)  # fmt: skip
