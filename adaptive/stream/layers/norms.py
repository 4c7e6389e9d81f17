"""Norms over channels, computed as diffusers computes them but with fewer tensors alive.

diffusers goes through float32 and makes a tensor at each step; here a step works in place of the one before
wherever it may, and the last of those in float32 is written straight into the result's dtype. Same sums, same
roundings.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from adaptive.stream.intercept import Forward

_NARROW = (torch.float16, torch.bfloat16)
_WIDE = (torch.float32, torch.float64)
_LEAST_LENGTH = 1e-12  # of `torch.nn.functional.normalize`


def unit_length(layer: Any, forward: Forward, frames: Tensor) -> Tensor:
    """Frames divided by their length over channels, times `layer.scale` and `layer.gamma`, plus `layer.bias`.

    `layer.channel_first`: channels are dimension 1, else the last.
    """
    gamma, bias = layer.gamma, layer.bias
    mixed = any(isinstance(each, Tensor) and each.dtype != frames.dtype for each in (gamma, bias))
    if mixed or frames.dtype not in _NARROW + _WIDE:
        return forward(frames)  # type: ignore[no-any-return]
    wide = frames.float() if frames.dtype in _NARROW else frames
    length = wide.norm(2, 1 if layer.channel_first else -1, keepdim=True).clamp_min_(_LEAST_LENGTH)
    del wide
    normed = torch.div(frames, length, out=torch.empty_like(frames))
    return normed.mul_(layer.scale).mul_(gamma).add_(bias)


def root_mean_square(layer: Any, forward: Forward, frames: Tensor) -> Tensor:
    """diffusers' `RMSNorm` over the last dimension, where it has no weight."""
    if layer.weight is not None or frames.dtype not in _NARROW:
        return forward(frames)  # type: ignore[no-any-return]
    variance = frames.to(torch.float32).pow_(2).mean(-1, keepdim=True)
    return torch.mul(frames, torch.rsqrt(variance + layer.eps), out=torch.empty_like(frames))
