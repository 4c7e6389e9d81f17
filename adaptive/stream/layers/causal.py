"""Layers of Wan's kind in less memory: convolutions that copy their input once, norms and upsampling without
copies in float32.

diffusers joins a layer's cache and its frames, pads what that gave, and convolves; the block around holds the
frames meanwhile, so that three copies of them are alive when the result is made. Here cache and frames are
written into one padded window. Every sum is the very same. Knows layers by the names a family gives, no
family.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from adaptive.stream.intercept import Forward, forwards_replaced, replacing_forward
from adaptive.stream.layers import norms
from adaptive.stream.layers.early_release import EarlyRelease

_ACTIVATION = "SiLU"


class CausalLayers:
    """The causal convolutions of a network, the activations in front of them, its norms and its upsampling.

    Their classes' names begin with `prefix`: `CausalConv3d` is a `Conv3d` that keeps what it pads in
    `_padding`, the frames before the first last, and is called with frames and their cache; what an
    activation gives must be looked at by one of these alone. `RMS_norm` is what `norms.unit_length` takes,
    `Upsample` an `nn.Upsample` that computes in float32. Networks with compiled layers are left as they are.
    """

    def __init__(self, network: nn.Module, prefix: str) -> None:
        self._spending = EarlyRelease()
        rules: dict[str, Forward] = {
            f"{prefix}CausalConv3d": self._convolve,
            f"{prefix}RMS_norm": norms.unit_length,
            f"{prefix}Upsample": _upsample,
            _ACTIVATION: self._activate,
        }
        layers = list(network.modules())
        if any(layer._compiled_call_impl is not None for layer in layers):
            layers = []
        named = ((layer, type(layer).__name__) for layer in layers)
        self._rules = {layer: replacing_forward(rules[name]) for layer, name in named if name in rules}

    @contextmanager
    def lean(self) -> Iterator[None]:
        """A context in which these layers take less memory."""
        try:
            with forwards_replaced(self._rules):
                yield
        finally:
            self._spending.withdraw()  # after a failure it would hold the frames through the next try

    def _activate(self, _layer: nn.Module, forward: Forward, frames: Tensor) -> Tensor:
        return self._spending.offer(forward(frames))

    def _convolve(self, layer: Any, _forward: Forward, frames: Tensor, cache: Tensor | None = None) -> Tensor:
        if any(layer._padding):
            window = _padded(frames, cache, layer._padding)
            self._spending.spend(frames)
        else:
            window = frames
        return F.conv3d(
            window, layer.weight, layer.bias, layer.stride, layer.padding, layer.dilation, layer.groups
        )


def _padded(frames: Tensor, cache: Tensor | None, padding: tuple[int, ...]) -> Tensor:
    """Zeros around `cache` followed by `frames`, in the memory format of `frames`."""
    width, _, height, _, before, _ = padding
    batch, channels, count, rows, columns = frames.shape
    past = 0 if cache is None else min(before, cache.shape[2])
    last = torch.channels_last_3d
    strided_last = frames.is_contiguous(memory_format=last) and not frames.is_contiguous()
    window = torch.empty(
        (batch, channels, before + count, rows + 2 * height, columns + 2 * width),
        dtype=frames.dtype,
        device=frames.device,
        memory_format=last if strided_last else torch.contiguous_format,
    ).zero_()
    inner = window[:, :, before - past :, height : height + rows, width : width + columns]
    if cache is not None:
        inner[:, :, :past].copy_(cache[:, :, cache.shape[2] - past :])
    inner[:, :, past:].copy_(frames)
    return window


def _upsample(layer: Any, forward: Forward, frames: Tensor) -> Tensor:
    """Copies of pixels need no detour through float32, except from float64, which is rounded by it."""
    if frames.dtype == torch.float64 or not layer.mode.startswith("nearest"):
        return forward(frames)  # type: ignore[no-any-return]
    return F.interpolate(frames, scale_factor=layer.scale_factor, mode=layer.mode)
