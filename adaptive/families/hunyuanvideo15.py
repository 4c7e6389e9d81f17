"""HunyuanVideo 1.5: causal convolutions with replicate padding, and attention that looks back over all
frames, in decoder and encoder. Serves `AutoencoderKLHunyuanVideo15`.

The key-value cache of the attention grows with the video: by two latent-sized activations for each latent
frame.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from adaptive.families.shared.causal_family import CausalFamily
from adaptive.families.shared.family import Family
from adaptive.families.shared.rules import activation, attend_frame_by_frame, pad_in_space
from adaptive.families.shared.traits import named_ratios

if TYPE_CHECKING:
    from torch import Tensor

    from adaptive.families.shared.rules import Forward
    from adaptive.stream.engines.chunk_pass import ChunkPass


class HunyuanVideo15Family(CausalFamily):
    """`AutoencoderKLHunyuanVideo15`."""

    name = "hunyuanvideo15"
    traits_from_config = named_ratios(latent_channels=32, spatial_ratio=16, temporal_ratio=4, mask_numbers=1)

    def decode_whole(self, vae: Any, latents: Tensor, kwargs: Mapping[str, Any]) -> Tensor:
        """One call for each sample: diffusers' attention mask does not fit a batch of two."""
        import torch

        return torch.cat([Family.decode_whole(self, vae, one, kwargs) for one in torch.split(latents, 1)])

    def encode_whole(self, vae: Any, video: Tensor, kwargs: Mapping[str, Any]) -> Tensor:
        """One call for each sample, as in decoding."""
        import torch

        return torch.cat([Family.encode_whole(self, vae, one, kwargs) for one in torch.split(video, 1)])


def _convolution(chunk_pass: ChunkPass, layer: Any, _forward: Forward, frames: Tensor) -> Tensor:
    """The window in time first, then the padding in space, which the layer does together with it."""
    window = chunk_pass.push_causal(layer, frames, layer.conv.kernel_size[0])
    window = pad_in_space(window, layer.time_causal_padding[:4], layer.pad_mode)  # frees the unpadded window
    convolved: Tensor = layer.conv(window)
    return convolved


def _norm(_chunk_pass: ChunkPass, layer: Any, forward: Forward, frames: Tensor) -> Tensor:
    from adaptive.stream.layers.norms import unit_length

    return unit_length(layer, forward, frames)


def _upsample(chunk_pass: ChunkPass, layer: Any, forward: Forward, frames: Tensor) -> Tensor:
    """In time, the first frame of the stream gives one frame, every later frame two."""
    if not layer.add_temporal_upsample or chunk_pass.first(layer):
        return forward(frames)
    out: Tensor = layer._dcae_upsample_rearrange(layer.conv(frames), r1=2)
    shortcut: Tensor = layer._dcae_upsample_rearrange(frames, r1=2)
    return out.add_(shortcut.repeat_interleave(repeats=layer.repeats, dim=1))


def _downsample(chunk_pass: ChunkPass, layer: Any, forward: Forward, frames: Tensor) -> Tensor:
    """In time, the first frame of the stream gives one frame, every later pair one."""
    if not layer.add_temporal_downsample or chunk_pass.first(layer):
        return forward(frames)
    out: Tensor = layer._dcae_downsample_rearrange(layer.conv(frames), r1=2)
    packed: Tensor = layer._dcae_downsample_rearrange(frames, r1=2)
    batch, channels, *sides = packed.shape
    grouped = packed.reshape(batch, channels // layer.group_size, layer.group_size, *sides)
    return out.add_(grouped.mean(dim=2))


def _attention(chunk_pass: ChunkPass, layer: Any, _forward: Forward, frames: Tensor) -> Tensor:
    """Each frame attends to itself and to all earlier frames."""
    batch, channels, count, height, width = frames.shape
    area = height * width
    normed = layer.norm(frames)
    query, key, value = (_tokens(project(normed)) for project in (layer.to_q, layer.to_k, layer.to_v))
    keys, values = chunk_pass.extend_cache(layer, key, value, dim=2)
    mixed = attend_frame_by_frame(query, keys, values, area=area, past=keys.shape[2] // area - count)
    mixed = mixed.squeeze(1).reshape(batch, count, height, width, channels)
    projected: Tensor = layer.proj_out(mixed.permute(0, 4, 1, 2, 3))
    return projected + frames


def _tokens(frames: Tensor) -> Tensor:
    """`[B, C, T, H, W]` to `[B, 1, T*H*W, C]`."""
    return frames.flatten(2).permute(0, 2, 1).unsqueeze(1).contiguous()


FAMILY = HunyuanVideo15Family(
    rules={
        "HunyuanVideo15CausalConv3d": _convolution,
        "HunyuanVideo15Upsample": _upsample,
        "HunyuanVideo15Downsample": _downsample,
        "HunyuanVideo15AttnBlock": _attention,
        "HunyuanVideo15RMS_norm": _norm,
        "SiLU": activation,
    },
    framewise=frozenset(
        {
            "HunyuanVideo15Decoder3D", "HunyuanVideo15MidBlock", "HunyuanVideo15UpBlock3D",
            "HunyuanVideo15Encoder3D", "HunyuanVideo15DownBlock3D", "HunyuanVideo15ResnetBlock", "Conv3d",
        }
    ),
)  # fmt: skip
