"""Layer rules, and parts of rules, that several families use.

A rule stands in for the `forward` of one class of layers while a chunk passes: `rule(chunk_pass, layer,
forward, *args, **kwargs)` returns what the layer would give in the middle of the whole video. Imports torch
only inside functions.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

    from adaptive.stream.engines.chunk_pass import ChunkPass

    Forward = Callable[..., Tensor]  # the layer's own forward


def activation(chunk_pass: ChunkPass, _layer: Any, forward: Forward, frames: Tensor) -> Tensor:
    """Rule of activations directly before temporal layers: the next layer may free the result early."""
    return chunk_pass.early_release.mark_last_use(forward(frames))


def pad_in_space(window: Tensor, sides: tuple[int, int, int, int], mode: str) -> Tensor:
    """`window` `[B, C, T, H, W]` padded by `sides`: left, right, top, bottom."""
    from torch.nn.functional import pad

    return pad(window, (*sides, 0, 0), mode=mode)


def attend_frame_by_frame(query: Tensor, keys: Tensor, values: Tensor, *, area: int, past: int) -> Tensor:
    """Attention of each frame to all positions of itself and of all earlier frames.

    `query` is `[B, heads, n * area, C]` for n frames of `area` positions, after `past` frames; `keys` and
    `values` hold at least `(past + n) * area` positions. One frame at a time needs no mask.
    """
    import torch
    from torch.nn.functional import scaled_dot_product_attention as attend

    start = past * area
    ends = range(start + area, start + query.shape[2] + 1, area)
    attended = [
        attend(frame, keys[:, :, :end], values[:, :, :end])
        for frame, end in zip(torch.split(query, area, 2), ends, strict=True)
    ]
    return torch.cat(attended, 2)


def channels_to_space(frames: Tensor, stride: tuple[int, int, int]) -> Tensor:
    """`[B, c*p*q*r, T, H, W]` to `[B, c, T*p, H*q, W*r]`."""
    p, q, r = stride
    batch, channels, count, height, width = frames.shape
    split = frames.reshape(batch, channels // (p * q * r), p, q, r, count, height, width)
    return split.permute(0, 1, 5, 2, 6, 3, 7, 4).flatten(6, 7).flatten(4, 5).flatten(2, 3)


def space_to_channels(frames: Tensor, stride: tuple[int, int, int]) -> Tensor:
    """`[B, c, T*p, H*q, W*r]` to `[B, c*p*q*r, T, H, W]`."""
    p, q, r = stride
    batch, channels, count, height, width = frames.shape
    split = frames.reshape(batch, channels, count // p, p, height // q, q, width // r, r)
    return split.permute(0, 1, 3, 5, 7, 2, 4, 6).flatten(1, 4)
