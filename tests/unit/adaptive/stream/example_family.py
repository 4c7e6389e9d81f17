"""Example: causal convolutions with replicate padding, and upsampling by nearest neighbours. Serves
`AutoencoderKLExample`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from adaptive.families.shared.causal_family import CausalFamily
from adaptive.families.shared.rules import activation
from adaptive.families.shared.traits import named_ratios

if TYPE_CHECKING:
    from torch import Tensor

    from adaptive.families.shared.rules import Forward
    from adaptive.stream.engines.chunk_pass import ChunkPass


class ExampleFamily(CausalFamily):
    """`AutoencoderKLExample`."""

    name = "example"
    traits_from_config = named_ratios(latent_channels=4, spatial_ratio=2, temporal_ratio=2)


def _convolution(chunk_pass: ChunkPass, layer: Any, _forward: Forward, frames: Tensor) -> Tensor:
    """The window in time; the convolution itself pads in space."""
    size, stride = layer.conv.kernel_size[0], layer.conv.stride[0]
    window = chunk_pass.push_causal(layer, frames, size, stride=stride)
    convolved: Tensor = layer.conv(window)
    return convolved


def _upsample(chunk_pass: ChunkPass, layer: Any, forward: Forward, frames: Tensor) -> Tensor:
    """In time, the first frame of the stream gives one frame, every later frame two."""
    if chunk_pass.first(layer):
        return forward(frames)
    doubled = frames.repeat_interleave(2, dim=2)
    upsampled: Tensor = layer.conv(layer.in_space(doubled))
    return upsampled


FAMILY = ExampleFamily(
    rules={"ExampleCausalConv3d": _convolution, "ExampleUpsample3d": _upsample, "SiLU": activation},
    framewise=frozenset({"ExampleDecoder3d", "ExampleEncoder3d", "ExampleUpBlock3d", "Conv3d", "Upsample"}),
)
