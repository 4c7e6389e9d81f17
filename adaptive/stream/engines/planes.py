"""Planes: the up blocks of diffusers' 2D `Decoder` in strips, where norms span the whole frame.

A group norm needs every position of a frame before it can normalise any, so a strip cannot go through all
layers at once (as in `strips`). Instead each residual block runs alone on the frame, in three passes over the
strips: the statistics of its first norm, those of its second norm, and the result. The result overwrites the
block's input row by row where shapes allow. An upsampler runs as part of the block after it, strip by strip:
the tensor between the two is the largest of the decode and never exists as a whole.

Owns the passes over strips of that decoder's blocks. Knows no other network.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from adaptive.errors import UnsupportedVae
from adaptive.stream.engines.sweep import GroupStatistics
from adaptive.stream.layer_checks import check_reimplemented
from adaptive.tiles import Span, strips

# rows(low, high) returns those rows `[N, C, high - low, W]` of a tensor that need not exist as a whole.
Rows = Callable[[int, int], Tensor]
_BLOCK_REACH = 2  # rows on either side that the two convolutions of a residual block need


_LAYERS = frozenset(
    {
        "Attention", "Conv2d", "Decoder", "Dropout", "GELU", "GroupNorm", "Identity", "Linear", "Mish",
        "ModuleList", "ReLU", "ResnetBlock2D", "SiLU", "UNetMidBlock2D", "UpDecoderBlock2D", "Upsample2D",
    }
)  # fmt: skip


def supports_strips(decoder: Any) -> bool:
    """Whether `upper_layers` does what every layer after the middle block does, and its hooks, if any."""
    try:
        check_reimplemented(decoder, _LAYERS, "strips")
    except UnsupportedVae:
        return False
    return type(decoder.conv_norm_out).__name__ == "GroupNorm" and all(
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
    """Run the layers after the middle block in `number` strips: `[N, C, h, w]` to `[N, c, H, W]`.

    `hidden`, the output of the middle block, is not changed.
    """
    plane, upsampler, overwrite = hidden, None, False
    for up_block in decoder.up_blocks:
        for block in up_block.resnets:
            plane = _block(plane, upsampler, block, number, overwrite=overwrite)
            upsampler, overwrite = None, True
        upsampler = up_block.upsamplers[0] if up_block.upsamplers else None
    rows, height = _source(plane, upsampler)
    spans = strips(height, number)
    norm = _statistics(decoder.conv_norm_out, rows, spans)
    last = _convolved(lambda part: decoder.conv_out(decoder.conv_act(norm.normalized(part))), rows, height)
    frame: Tensor | None = None
    for start, stop in spans:
        part = last(start, stop)
        if frame is None:
            frame = part.new_empty(*part.shape[:2], height, part.shape[3])
        frame[:, :, start:stop] = part
        del part
    assert frame is not None
    return frame


def _block(plane: Tensor, upsampler: Any, block: Any, number: int, *, overwrite: bool) -> Tensor:
    """Run `upsampler` (may be None) and then the residual block on `plane`, in `number` strips.

    With `overwrite` the result may take the place of `plane`.
    """
    rows, height = _source(plane, upsampler)
    spans = strips(height, number)
    norm1 = _statistics(block.norm1, rows, spans)

    def first(part: Tensor) -> Tensor:
        return block.conv1(block.nonlinearity(norm1.normalized(part)))  # type: ignore[no-any-return]

    norm2 = _statistics(block.norm2, _convolved(first, rows, height), spans)

    def second(part: Tensor) -> Tensor:
        return block.conv2(block.dropout(block.nonlinearity(norm2.normalized(part))))  # type: ignore[no-any-return]

    in_place = overwrite and upsampler is None and block.conv_shortcut is None
    result = plane if in_place else None
    kept: Tensor | None = None  # the rows just above the strip, from before they were overwritten
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
    """Return the block's output for the rows `span` of `inputs`, which contains all rows they depend on."""
    height = inputs.shape[2]

    def rows(low: int, high: int) -> Tensor:
        return inputs[:, :, low:high]

    # At an edge of `inputs` inside the frame, the first convolution pads with zeros instead of the
    # neighbours. Only rows outside `span` are wrong for that; they are cut off.
    hidden = _convolved(first, rows, height)
    outputs = _convolved(second, hidden, height)(*span)
    shortcut = rows(*span)
    if block.conv_shortcut is not None:
        shortcut = block.conv_shortcut(shortcut)
    return (shortcut + outputs).div_(block.output_scale_factor)


def _source(plane: Tensor, upsampler: Any) -> tuple[Rows, int]:
    """Return the rows of `plane`, or of the upsampler's output for it, and their number."""
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
    """Return the output rows of `layer`, which contains one convolution of kernel size three."""

    def output_rows(low: int, high: int) -> Tensor:
        first, last = max(0, low - 1), min(height, high + 1)
        return layer(rows(first, last))[:, :, low - first : high - first]

    return output_rows


def _statistics(norm: Any, rows: Rows, spans: Iterable[Span]) -> GroupStatistics:
    statistics = GroupStatistics(norm)
    for span in spans:
        statistics.add(rows(*span))
    return statistics
