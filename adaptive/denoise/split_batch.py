"""Calls a denoiser once for each half of its batch: guidance in two passes, in about half the memory.

Pipelines send the two branches of classifier-free guidance through the denoiser as one batch. The halves give
the same result but for the order in which kernels add numbers. Must not know pipelines or memory.
"""

from collections.abc import Callable, Mapping
from dataclasses import fields, is_dataclass
from typing import Any

import torch
from torch import Tensor

Call = Callable[..., Any]
# Arguments that hold several rows for each video of the batch: the text once for each frame.
_ROWS_A_VIDEO = ("encoder_hidden_states", "encoder_attention_mask")


def can_split(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> bool:
    """Whether the call's first tensor has an even batch."""
    batch = _batch_of(args, kwargs)
    return batch is not None and batch % 2 == 0


def split_call(call: Call, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
    """The result of `call(*args, **kwargs)`, made in two calls on halves of the batch; see `can_split`."""
    batch = _batch_of(args, kwargs)
    assert batch is not None

    def part(index: int) -> Any:
        given = (_half(value, batch, index, "") for value in args)
        named = {name: _half(value, batch, index, name) for name, value in kwargs.items()}
        return call(*given, **named)

    return _joined(part(0), part(1))


def _batch_of(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> int | None:
    tensors = (each for each in (*args, *kwargs.values()) if isinstance(each, Tensor))
    first = next(tensors, None)
    return None if first is None or first.ndim == 0 else first.shape[0]


def _half(value: Any, batch: int, index: int, name: str) -> Any:
    if not isinstance(value, Tensor) or value.ndim == 0:
        return value
    rows = value.shape[0]
    if rows != batch and not (rows % batch == 0 and name.startswith(_ROWS_A_VIDEO)):
        return value  # one for all videos, as positions are
    return value[: rows // 2] if index == 0 else value[rows // 2 :]


def _joined(first: Any, second: Any) -> Any:
    """The two results as one: tensors along their batch, inside of tuples, lists and diffusers' outputs."""
    if isinstance(first, Tensor):
        return torch.cat([first, second]) if first.ndim else first
    if isinstance(first, list | tuple):
        return type(first)(_joined(a, b) for a, b in zip(first, second, strict=True))
    if is_dataclass(first) and not isinstance(first, type):
        names = [each.name for each in fields(first)]
        return type(first)(**{name: _joined(getattr(first, name), getattr(second, name)) for name in names})
    return first
