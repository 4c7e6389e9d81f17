"""Remembers what operators return on torch's meta device, where they compute shapes only.

torch computes them in Python, in up to a millisecond a call, and a traced decode calls the same layers with
the same shapes again and again. Owns which calls may be answered from memory. Knows nothing of VAEs or bytes.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

_MOST_CALLS = 20_000  # remembered at a time, a few hundred bytes each
_STORAGE_CHANGING = ("aten::set_", "aten::resize_")
_PLAIN = (int, float, bool, str, type(None), torch.dtype, torch.device, torch.layout, torch.memory_format)


class _Spec(NamedTuple):
    """A tensor on the meta device."""

    shape: tuple[int, ...]
    stride: tuple[int, ...]
    dtype: torch.dtype


class _Known(NamedTuple):
    """Result of a call: new tensors, alone or in a tuple; or an argument, which the call only writes to."""

    specs: tuple[_Spec, ...]
    alone: bool = True
    argument: int | str | None = None  # by position or name


class _UnknownError(Exception):
    """A call has an argument of which nothing is known."""


_calls: dict[Hashable, _Known | None] = {}  # None: a call that must be made


def call(func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
    """The result of `func(*args, **kwargs)`, an operator of torch, as a `TorchDispatchMode` gets it.

    A call that was made before with such arguments is not made again, if its results are new tensors on the
    meta device, or if it only wrote to an argument, which it returned.
    """
    try:
        key = func, _key(args), tuple((name, _key(value)) for name, value in kwargs.items())
    except _UnknownError:
        return func(*args, **kwargs)
    known = _calls.get(key)
    if known is not None:
        return _repeated(known, args, kwargs)
    if key in _calls:
        return func(*args, **kwargs)
    result = func(*args, **kwargs)
    if len(_calls) >= _MOST_CALLS:
        _calls.clear()
    _calls[key] = _learned(func, args, kwargs, key, result)
    return result


def _repeated(known: _Known, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
    if known.argument is not None:
        return args[known.argument] if isinstance(known.argument, int) else kwargs[known.argument]
    tensors = [
        torch.empty_strided(spec.shape, spec.stride, dtype=spec.dtype, device="meta") for spec in known.specs
    ]
    return tensors[0] if known.alone else tuple(tensors)


def _key(value: Any) -> Hashable:
    if isinstance(value, Tensor):
        if type(value) not in (Tensor, torch.nn.Parameter) or not value.is_meta:
            raise _UnknownError
        return _spec(value)
    if isinstance(value, tuple | list):
        return tuple(_key(each) for each in value)
    if type(value) in _PLAIN:
        return type(value), value  # 1 and True are equal, what an operator does with them is not
    raise _UnknownError


def _spec(tensor: Tensor) -> _Spec:
    return _Spec(tuple(tensor.shape), tensor.stride(), tensor.dtype)


def _learned(
    func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any], key: Any, result: Any
) -> _Known | None:
    """What is remembered of a call; `key` was made before it."""
    aliased = [each for each in func._schema.arguments if each.alias_info is not None]
    if aliased:
        (written, *others) = aliased
        if (
            func._schema.name in _STORAGE_CHANGING
            or others
            or not written.alias_info.is_write
            or not isinstance(result, Tensor)
        ):
            return None
        before = dict(key[2]).get(written.name, key[1][0] if args else None)
        if _spec(result) != before:
            return None
        if result is kwargs.get(written.name):
            return _Known((), argument=written.name)
        return _Known((), argument=0) if args and result is args[0] else None
    results = (result,) if isinstance(result, Tensor) else result
    if not isinstance(results, tuple) or not all(_is_new(each) for each in results):
        return None
    storages = {each.untyped_storage()._cdata for each in results}
    given = {each.untyped_storage()._cdata for each in _tensors((args, tuple(kwargs.values())))}
    if len(storages) < len(results) or storages & given:
        return None
    return _Known(tuple(_spec(each) for each in results), isinstance(result, Tensor))


def _is_new(result: Any) -> bool:
    """Whether a result is a tensor that an empty one of its shape and strides can replace."""
    if type(result) is not Tensor or not result.is_meta or result.storage_offset():
        return False
    twin = torch.empty_strided(result.shape, result.stride(), dtype=result.dtype, device="meta")
    return twin.untyped_storage().nbytes() == result.untyped_storage().nbytes()


def _tensors(values: Any) -> list[Tensor]:
    found: list[Tensor] = []
    for value in values:
        if isinstance(value, Tensor):
            found.append(value)
        elif isinstance(value, tuple | list):
            found += _tensors(value)
    return found
