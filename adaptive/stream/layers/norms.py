"""Norms over channels, computed as diffusers computes them but with fewer tensors alive.

diffusers converts to float32 and makes a new tensor at each step. Here a step works in place of the one
before where it can, and the last step in float32 writes straight into the result's dtype. Sums and roundings
are the same.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from adaptive.stream.intercept import Forward

_NARROW = (torch.float16, torch.bfloat16)
_WIDE = (torch.float32, torch.float64)
_LEAST_LENGTH = 1e-12  # the default `eps` of `torch.nn.functional.normalize`


def unit_length(layer: Any, forward: Forward, frames: Tensor) -> Tensor:
    """Return `frames / length * layer.scale * layer.gamma + layer.bias`.

    `length` is the L2 norm over channels: dimension 1 if `layer.channel_first`, else the last. Calls
    `forward` if dtypes differ from each other or are no floating point.
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
    """Compute diffusers' `RMSNorm` over the last dimension if it has no weight; else call `forward`."""
    if layer.weight is not None or frames.dtype not in _NARROW:
        return forward(frames)  # type: ignore[no-any-return]
    variance = frames.to(torch.float32).pow_(2).mean(-1, keepdim=True)
    return torch.mul(frames, torch.rsqrt(variance + layer.eps), out=torch.empty_like(frames))
