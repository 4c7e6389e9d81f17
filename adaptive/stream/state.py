"""The state of a stream: a dictionary of nested values that contain tensors.

Each engine decides what it stores. This module walks through such values: tensors may be nested in
dictionaries, tuples, named tuples and lists; any other value is left alone.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

State = dict[Hashable, Any]


@contextmanager
def computing() -> Iterator[None]:
    """Within the context, compute without gradients, and outside of inference mode.

    Later steps write to tensors of earlier ones. Between them, the caller may enter or leave inference mode.
    """
    with torch.inference_mode(False), torch.no_grad():
        yield


def moved(state: State, device: torch.device) -> State:
    """Return a copy of `state` whose tensors are on `device`."""
    with computing():
        return {key: map_tensors(value, lambda tensor: tensor.to(device)) for key, value in state.items()}


def map_tensors(value: Any, change: Callable[[Tensor], Any]) -> Any:
    """Return `value` with `change` applied to every tensor nested in it."""
    if isinstance(value, Tensor):
        return change(value)
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*(map_tensors(part, change) for part in value))
    if isinstance(value, dict):
        return {key: map_tensors(part, change) for key, part in value.items()}
    if isinstance(value, (tuple, list)):
        return type(value)(map_tensors(part, change) for part in value)
    return value


def tensors(value: Any) -> Iterator[Tensor]:
    """Yield every tensor nested in `value`, in the order in which `map_tensors` visits them."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        for part in value.values():
            yield from tensors(part)
    elif isinstance(value, (tuple, list)):
        for part in value:
            yield from tensors(part)
