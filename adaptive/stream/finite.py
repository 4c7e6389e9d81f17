"""Finds values that are not finite: NaN and infinities.

A tensor whose least and greatest values are finite holds finite values only, because a reduction passes NaN
on. So one reduction without a mask is enough, and broken values are counted only once some are found. It does
not know where the values come from or what is done about them.
"""

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from adaptive.errors import NonFiniteValues


def check_finite(values: Tensor, stage: str, subject: str) -> None:
    """Raise `NonFiniteValues` unless every value is finite. Waits for the device to compute them.

    `subject` names the values in the error's message, for example "the latents".
    """
    if not is_finite(values):
        dtype = str(values.dtype).removeprefix("torch.")
        found = count_nonfinite(values)
        raise NonFiniteValues(stage, subject, values=found, of=values.numel(), dtype=dtype)


def is_finite(values: Tensor) -> bool:
    """Whether every value is finite: one reduction on the values' device, without a mask or a copy."""
    if not values.is_floating_point() or values.numel() == 0:
        return True
    return all(math.isfinite(extreme) for extreme in _extremes(values).tolist())


def count_nonfinite(values: Tensor) -> int:
    """The number of values that are not finite. Its mask is that of one plane at a time."""
    if not values.is_floating_point():
        return 0
    return sum(plane.numel() - int(plane.isfinite().sum()) for plane in _planes(values))


def _planes(values: Tensor) -> Iterator[Tensor]:
    if values.dim() <= 2:
        yield values
        return
    for part in values.unbind(0):
        yield from _planes(part)


def _extremes(values: Tensor) -> Tensor:
    """Least and greatest value, as a tensor of two; either is NaN if a value is.

    torch copies a tensor with gaps, or with its dimensions in another order, before it reduces it as a whole.
    So dimensions are put in the order of memory, and parts with gaps are reduced one by one.
    """
    dense = values.permute(sorted(range(values.dim()), key=values.stride, reverse=True))
    if dense.is_contiguous() or dense.dim() <= 2:
        return torch.stack(tuple(torch.aminmax(dense)))
    parts = [_extremes(part) for part in dense.unbind(0)]
    return torch.stack(tuple(torch.aminmax(torch.stack(parts))))
