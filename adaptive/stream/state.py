"""State between steps: nested values with tensors in them, whatever the engine keeps.

Owns walking through them: tensors lie in dictionaries, tuples, named tuples and lists; everything else is
left alone.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

State = dict[Hashable, Any]


def moved(state: State, device: torch.device) -> State:
    """The state with every tensor in it on `device`."""
    return {key: mapped(value, lambda tensor: tensor.to(device)) for key, value in state.items()}


def mapped(value: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """`value` with every tensor in it changed: tuples, named tuples and lists are followed."""
    if isinstance(value, Tensor):
        return change(value)
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*(mapped(part, change) for part in value))
    if isinstance(value, dict):
        return {key: mapped(part, change) for key, part in value.items()}
    if isinstance(value, (tuple, list)):
        return type(value)(mapped(part, change) for part in value)
    return value


def tensors(value: Any) -> Iterator[Tensor]:
    """Every tensor in `value`, in the order in which `mapped` meets them."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        for part in value.values():
            yield from tensors(part)
    elif isinstance(value, (tuple, list)):
        for part in value:
            yield from tensors(part)
