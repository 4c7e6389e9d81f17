"""Convolutions over few frames on the CPU: choose the faster of torch's two implementations.

For a batch of one, torch decides by channels x frames x height of the input. Up to 20480 it unrolls the input
and multiplies matrices; above, it calls oneDNN. Width and number of outputs do not count. A chunk of a small
video, or a one-call decode that goes frame by frame (Wan), therefore runs unrolled in layers where oneDNN
takes half the time or less. Both compute the same sums. Owns that choice, and the dtype of a result.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from math import prod
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

# Measured on one core, 16 to 512 channels, kernels 3x3x3: from 192 outputs a channel, oneDNN is 1.1 to 3.8
# times as fast as the unrolled convolution. Below 96 it is slower if there are many channels, because it
# reorders the weights at each call.
_LEAST_OUTPUTS = 160
_TORCH_LIMIT = 20480  # `use_mkldnn` in torch's Convolution.cpp


@contextmanager
def convolutions_for(device: torch.device) -> Iterator[None]:
    """Within the context, three-dimensional convolutions on `device` use the faster implementation.

    Under autocast they are torch's own: autocast does not know oneDNN's operator and would leave it in
    float32.
    """
    if device.type == "cpu" and _has_onednn() and not torch.is_autocast_enabled("cpu"):
        with _PreferOneDnn():
            yield
    else:
        yield


def convolved_dtype(inputs: Tensor) -> torch.dtype:
    """Return the dtype that a convolution of `inputs` gives: autocast leaves only float64 alone."""
    kind = inputs.device.type
    if inputs.dtype == torch.float64 or not torch.amp.is_autocast_available(kind):
        return inputs.dtype
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else inputs.dtype


def _has_onednn() -> bool:
    backend: Any = torch.backends.mkldnn
    return bool(backend.is_available() and backend.enabled)


class _PreferOneDnn(TorchFunctionMode):
    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is torch.conv3d and not kwargs and len(args) > 2:
            frames, weight, bias, *rest = args
            given: list[Any] = [*rest, *(1, 0, 1, 1)[len(rest) :]]
            stride, padding, dilation = (_three(sides) for sides in given[:3])
            if given[3] == 1 and _faster_with_onednn(frames, weight, stride, padding, dilation):
                return torch.mkldnn_convolution(frames, weight, bias, padding, stride, dilation, 1)
        return func(*args, **(kwargs or {}))


def _three(sides: Any) -> Any:
    return (sides,) * 3 if isinstance(sides, int) else sides


def _faster_with_onednn(frames: Tensor, weight: Tensor, stride: Any, padding: Any, dilation: Any) -> bool:
    """Whether torch would unroll these frames although oneDNN is faster."""
    if not (frames.dtype == weight.dtype == torch.float32 and frames.device.type == "cpu"):
        return False
    if frames.ndim != 5 or frames.shape[0] != 1 or prod(frames.shape[:4]) > _TORCH_LIMIT:
        return False
    size = weight.shape[2:]
    if prod(size) == 1 or isinstance(padding, str) or type(frames) is not Tensor:
        return False
    sides = zip(frames.shape[2:], size, stride, padding, dilation, strict=True)
    outputs = prod(
        (side + 2 * pad - gap * (taps - 1) - 1) // step + 1 for side, taps, step, pad, gap in sides
    )
    return bool(outputs >= _LEAST_OUTPUTS)
