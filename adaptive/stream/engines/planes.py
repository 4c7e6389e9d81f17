"""Planes: one frame's upper layers in strips, where norms span the whole picture.

A group norm needs every position before it can give any, so a strip cannot go through all layers. Each
residual block is run on its own: over all strips for the statistics of either norm, then once more for its
result, which takes the place of its input row by row. An upsampler runs as part of the block behind it: what
lies between them is the largest tensor of all, and never whole. Owns strips and passes of diffusers' 2D
`Decoder`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from adaptive.stream.engines.sweep import GroupStatistics
from adaptive.tiles import Span, strips

Rows = Callable[
    [int, int], Tensor
]  # rows first to last of a picture [N, C, H, W] that need not exist as a whole
_BLOCK_REACH = 2  # rows on either side that the two convolutions of a residual block need


def strippable(decoder: Any) -> bool:
    """Whether every layer behind the middle block is one that `upper_layers` knows, on plain weights."""
    offloaded = {"_hf_hook", "_diffusers_hook"}  # by layers: norms are computed here, not called
    return not any(offloaded & vars(module).keys() for module in decoder.modules()) and all(
        type(block).__name__ == "UpDecoderBlock2D"
        and all(_known_resnet(resnet) for resnet in block.resnets)
        and all(_known_upsampler(upsampler) for upsampler in block.upsamplers or ())
        for block in decoder.up_blocks
    )


def _known_resnet(block: Any) -> bool:
    plain = (block.time_emb_proj, block.upsample, block.downsample) == (None, None, None)
    return type(block).__name__ == "ResnetBlock2D" and plain and type(block.norm1).__name__ == "GroupNorm"


def _known_upsampler(upsampler: Any) -> bool:
    doubles = upsampler.use_conv and upsampler.interpolate and not upsampler.use_conv_transpose
    return type(upsampler).__name__ == "Upsample2D" and doubles and upsampler.norm is None


def upper_layers(decoder: Any, hidden: Tensor, number: int) -> Tensor:
    """What `decoder` gives behind its middle block: `[N, C, h, w]` to `[N, c, H, W]`, in `number` strips.

    `hidden` is left as it is.
    """
    plane, upsampler, own = hidden, None, False
    for up_block in decoder.up_blocks:
        for block in up_block.resnets:
            plane = _block(plane, upsampler, block, number, own=own)
            upsampler, own = None, True
        upsampler = up_block.upsamplers[0] if up_block.upsamplers else None
    rows, height = _source(plane, upsampler)
    spans = strips(height, number)
    norm = _statistics(decoder.conv_norm_out, rows, spans)
    last = _convolved(lambda part: decoder.conv_out(decoder.conv_act(norm.normalized(part))), rows, height)
    picture: Tensor | None = None
    for start, stop in spans:
        part = last(start, stop)
        if picture is None:
            picture = part.new_empty(*part.shape[:2], height, part.shape[3])
        picture[:, :, start:stop] = part
        del part
    assert picture is not None
    return picture


def _block(plane: Tensor, upsampler: Any, block: Any, number: int, *, own: bool) -> Tensor:
    """A residual block on `plane`, upsampled first where there is an upsampler; in place where it can be."""
    rows, height = _source(plane, upsampler)
    spans = strips(height, number)
    norm1 = _statistics(block.norm1, rows, spans)

    def first(part: Tensor) -> Tensor:
        return block.conv1(block.nonlinearity(norm1.normalized(part)))  # type: ignore[no-any-return]

    norm2 = _statistics(block.norm2, _convolved(first, rows, height), spans)

    def second(part: Tensor) -> Tensor:
        return block.conv2(block.dropout(block.nonlinearity(norm2.normalized(part))))  # type: ignore[no-any-return]

    in_place = own and upsampler is None and block.conv_shortcut is None
    result = plane if in_place else None
    kept: Tensor | None = None  # rows above the strip as they were before they were overwritten
    for start, stop in spans:
        low, high = max(0, start - _BLOCK_REACH), min(height, stop + _BLOCK_REACH)
        inputs = rows(low, high) if kept is None else torch.cat([kept, rows(start, high)], 2)
        if in_place:
            kept = inputs[:, :, max(0, stop - _BLOCK_REACH) - low : stop - low].clone()
        part = _residual(block, first, second, inputs, Span(start - low, stop - low))
        if result is None:
            result = part.new_empty(*part.shape[:2], height, part.shape[3])
        result[:, :, start:stop] = part
        del inputs, part
    assert result is not None
    return result


def _residual(
    block: Any,
    first: Callable[[Tensor], Tensor],
    second: Callable[[Tensor], Tensor],
    inputs: Tensor,
    span: Span,
) -> Tensor:
    """The block's output for the rows `span` of `inputs`, which holds all that they depend on."""
    height = inputs.shape[2]

    def rows(low: int, high: int) -> Tensor:
        return inputs[:, :, low:high]

    # Rows that only the second convolution needs are wrong at an edge which is not the picture's: cut off.
    hidden = _convolved(first, rows, height)
    outputs = _convolved(second, hidden, height)(*span)
    shortcut = rows(*span)
    if block.conv_shortcut is not None:
        shortcut = block.conv_shortcut(shortcut)
    return (shortcut + outputs).div_(block.output_scale_factor)


def _source(plane: Tensor, upsampler: Any) -> tuple[Rows, int]:
    """Rows of `plane`, or of what the upsampler makes of it, and how many there are."""
    height = plane.shape[2]

    def own(low: int, high: int) -> Tensor:
        return plane[:, :, low:high]

    def doubled(low: int, high: int) -> Tensor:
        half = plane[:, :, low // 2 : -(-high // 2)]
        return interpolate(half, scale_factor=2.0, mode="nearest")[:, :, low % 2 : low % 2 + high - low]

    if upsampler is None:
        return own, height
    return _convolved(upsampler.conv, doubled, 2 * height), 2 * height


def _convolved(layer: Callable[[Tensor], Tensor], rows: Rows, height: int) -> Rows:
    """Rows of what a layer with one convolution of kernel size three gives."""

    def made(low: int, high: int) -> Tensor:
        first, last = max(0, low - 1), min(height, high + 1)
        return layer(rows(first, last))[:, :, low - first : high - first]

    return made


def _statistics(norm: Any, rows: Rows, spans: Iterable[Span]) -> GroupStatistics:
    found = GroupStatistics(norm)
    for span in spans:
        found.add(rows(*span))
    return found
