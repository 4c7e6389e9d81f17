"""Causal convolutions, norms and upsampling of Wan's kind in less memory, with the same sums.

diffusers joins a layer's cache and its frames, pads the result, and convolves. The block that calls the layer
keeps the frames meanwhile, so three copies of them are alive when the output is made. Here, cache and frames
are copied into one padded window and the frames are released. Norms and upsampling avoid copies in float32.

Finds layers by the class names that a family gives; knows no family.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from adaptive.stream.intercept import Forward, Interception, Rules, check_forwards, running
from adaptive.stream.layer_checks import is_known, may_keep_tensors
from adaptive.stream.layers import norms
from adaptive.stream.layers.early_release import EarlyRelease

_ACTIVATION = "SiLU"


class CausalLayers:
    """The layers of one network that can run in less memory.

    Layers are found by class name; `prefix` is the family's, for example `Wan`.

    - `{prefix}CausalConv3d` is a `Conv3d` that is called with frames and their cache. It keeps its padding in
      `_padding`, the frames before the first at index 4.
    - `{prefix}RMS_norm` is a norm that `norms.unit_length` can compute.
    - `{prefix}Upsample` is an `nn.Upsample` that computes in float32.
    - `SiLU` is an activation whose output is used by one of these layers alone.

    In a network with compiled layers, all layers run unchanged. Where someone may keep a layer's input (see
    `may_keep_tensors`), or layers of other packages may use it again, no input is released early. Raises
    `UnsupportedVae` if the `forward` of one of these layers was replaced.
    """

    def __init__(self, network: nn.Module, prefix: str) -> None:
        self._early_release = EarlyRelease()
        rules: dict[str, Forward] = {
            f"{prefix}CausalConv3d": self._convolve,
            f"{prefix}RMS_norm": norms.unit_length,
            f"{prefix}Upsample": _upsample,
            _ACTIVATION: self._activate,
        }
        layers = list(network.modules())
        self._layers = layers
        self._only_known = all(is_known(layer, network) for layer in layers)
        if any(layer._compiled_call_impl is not None for layer in layers):
            layers = []
        named = ((layer, type(layer).__name__) for layer in layers if is_known(layer, network))
        self.rules: Rules = {layer: rules[name] for layer, name in named if name in rules}
        self._network = network
        check_forwards(network, self.rules)
        self._interception: Interception | None = None

    @contextmanager
    def low_memory(self) -> Iterator[None]:
        """Within the context, run these layers in less memory."""
        if self._interception is None:
            self.open()
        with self.early_release(), running(self.rules):
            yield

    @contextmanager
    def early_release(self) -> Iterator[bool]:
        """Within the context, `rules` may run. Gives whether inputs are released early."""
        self._early_release.allowed = self._only_known and not may_keep_tensors(self._layers)
        try:
            yield self._early_release.allowed
        finally:
            self._early_release.forget()  # after a failure, it would keep the frames alive through the retry

    def open(self) -> None:
        """Take hold of the layers, until `close`."""
        self._interception = Interception(self._network, self.rules)

    def close(self) -> None:
        """Let go of the layers. Calling it again does nothing."""
        if self._interception is not None:
            self._interception.close()

    def _activate(self, _layer: nn.Module, forward: Forward, frames: Tensor) -> Tensor:
        return self._early_release.mark_last_use(forward(frames))

    def _convolve(self, layer: Any, _forward: Forward, frames: Tensor, cache: Tensor | None = None) -> Tensor:
        if any(layer._padding):
            window = _padded(frames, cache, layer._padding)
            self._early_release.release_if_marked(frames)
        else:
            window = frames
        return F.conv3d(
            window, layer.weight, layer.bias, layer.stride, layer.padding, layer.dilation, layer.groups
        )


def _padded(frames: Tensor, cache: Tensor | None, padding: tuple[int, ...]) -> Tensor:
    """Return `cache` followed by `frames` with zeros around them, in the memory format of `frames`.

    `padding` is (left, right, top, bottom, before the first frame, after the last), as for `F.pad`.
    """
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
    """Upsample without diffusers' conversion to float32.

    Copying pixels does not need it. It rounds float64, so float64 keeps it to give the same result.
    """
    if frames.dtype == torch.float64 or not layer.mode.startswith("nearest"):
        return forward(frames)  # type: ignore[no-any-return]
    return F.interpolate(frames, scale_factor=layer.scale_factor, mode=layer.mode)
