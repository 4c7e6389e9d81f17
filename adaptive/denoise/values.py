"""What networks and schedulers return and keep, as JSON and named tensors, and back.

Owns the kinds of values that can be stored: tensors, arrays, numbers, text, containers, the output classes of
diffusers and transformers, and a VAE's posterior. `forms_of` describes a value without its content. Must not
know files or pipelines.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

Json = Any
_POSTERIOR = ("parameters", "mean", "logvar", "std", "var")


class NotStorable(Exception):
    """A value of a kind that cannot be stored; the message names it."""


def flatten(value: Any, tensors: dict[str, Tensor]) -> Json:
    """`value` as JSON. Its tensors are copied to the host and added to `tensors` by number.

    A tensor that occurs twice is stored once. Raises `NotStorable`.
    """
    known: dict[int, tuple[str, Tensor]] = {}

    def stored(tensor: Tensor) -> Json:
        name, _ = known.setdefault(id(tensor), (str(len(tensors)), tensor))
        if name not in tensors:
            tensors[name] = torch.empty(tensor.shape, dtype=tensor.dtype).copy_(tensor.detach())
        return {"tensor": name, "device": tensor.device.type}

    return _described(value, stored)


def restore(tree: Json, tensors: Mapping[str, Tensor], device: torch.device) -> Any:
    """The value that `flatten` stored, bit for bit; tensors that were on a device come onto `device`.

    Raises `NotStorable` for a value of a class that is not loaded here, and `ValueError`, `KeyError` or
    `TypeError` for what `flatten` did not write.
    """

    def read(content: Mapping[str, Any]) -> Tensor:
        tensor = tensors[content["tensor"]]
        return tensor.clone() if content["device"] == "cpu" else tensor.to(device, copy=True)

    return _built(tree, read)


def form_of(value: Any) -> Json:
    """Shapes, dtypes and structure of `value` as JSON, without its content. Raises `NotStorable`."""
    return _described(
        value,
        lambda tensor: {
            "shape": list(tensor.shape),
            "dtype": str(tensor.dtype).removeprefix("torch."),
            "device": tensor.device.type,
        },
    )


def zeros_of(form: Json, device: torch.device) -> Any:
    """A value of that form whose tensors are zeros."""

    def zeros(content: Mapping[str, Any]) -> Tensor:
        place = torch.device("cpu") if content["device"] == "cpu" else device
        return torch.zeros(content["shape"], dtype=getattr(torch, content["dtype"]), device=place)

    return _built(form, zeros)


def _described(value: Any, of_tensor: Callable[[Tensor], Json]) -> Json:
    """JSON in which each value that JSON does not have is an object with one key, its kind."""

    def each(items: Mapping[str, Any]) -> Json:
        return {str(key): _described(item, of_tensor) for key, item in items.items()}

    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, Tensor):
        return {"tensor": of_tensor(value)}
    if isinstance(value, np.ndarray | np.generic):
        return {"array": of_tensor(_as_tensor(value))}
    if isinstance(value, torch.dtype):
        return {"dtype": str(value).removeprefix("torch.")}
    if isinstance(value, torch.device):
        return {"device": str(value)}
    if _is_posterior(value):
        return {"posterior": _posterior(value, of_tensor)}
    if isinstance(value, tuple | list) and type(value) in (tuple, list):
        return {type(value).__name__: [_described(item, of_tensor) for item in value]}
    if type(value) is dict:
        pairs = [(key, _described(item, of_tensor)) for key, item in value.items()]
        if not all(isinstance(key, str | int | float | bool | None) for key, _ in pairs):
            raise NotStorable("dict with keys other than numbers and text")
        return {"dict": [list(pair) for pair in pairs]}
    if _is_output(type(value)):
        return {"output": [type(value).__module__, type(value).__qualname__, each(value)]}
    raise NotStorable(f"{type(value).__module__}.{type(value).__qualname__}")


def _as_tensor(array: Any) -> Tensor:
    try:
        return torch.from_numpy(np.array(array))
    except TypeError:
        raise NotStorable(f"numpy array of {array.dtype}") from None


def _built(tree: Json, of_tensor: Callable[[Mapping[str, Any]], Tensor]) -> Any:
    if not isinstance(tree, dict):
        return tree
    ((kind, content),) = tree.items()
    match kind:
        case "tensor":
            return of_tensor(content)
        case "array":
            return of_tensor(content).numpy()
        case "dtype":
            return getattr(torch, content)
        case "device":
            return torch.device(content)
        case "tuple":
            return tuple(_built(item, of_tensor) for item in content)
        case "list":
            return [_built(item, of_tensor) for item in content]
        case "dict":
            return {key: _built(item, of_tensor) for key, item in content}
        case "posterior":
            return _built_posterior({key: _built(item, of_tensor) for key, item in content.items()})
        case "output":
            module, name, fields = content
            return _class_of(module, name)(**{key: _built(item, of_tensor) for key, item in fields.items()})
    raise ValueError(f"unknown kind of value {kind!r}")


def _is_output(kind: type) -> bool:
    return any(base.__name__ in ("BaseOutput", "ModelOutput") for base in kind.__mro__)


def _class_of(module: str, name: str) -> Any:
    """The output class of that name. No module is imported: what a pipeline returns is loaded with it."""
    kind = getattr(sys.modules.get(module), name, None)
    if not isinstance(kind, type) or not _is_output(kind):
        raise NotStorable(f"{module}.{name}")
    return kind


def _is_posterior(value: Any) -> bool:
    return type(value).__name__ == "DiagonalGaussianDistribution"


def _posterior(value: Any, of_tensor: Callable[[Tensor], Json]) -> Json:
    """The parameters, and the rest only where it does not follow from them: converted from another dtype."""
    names = ("parameters",) if _follows(value) else _POSTERIOR
    plain = {"deterministic": bool(value.deterministic)}
    return plain | {name: {"tensor": of_tensor(getattr(value, name))} for name in names}


def _follows(value: Any) -> bool:
    again = type(value)(value.parameters, deterministic=value.deterministic)
    return all(
        (one := getattr(again, name)).dtype == (other := getattr(value, name)).dtype
        and torch.equal(one, other)
        for name in _POSTERIOR
    )


def _built_posterior(content: Mapping[str, Any]) -> Any:
    from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution

    posterior = DiagonalGaussianDistribution(content["parameters"], deterministic=content["deterministic"])
    for name in _POSTERIOR:
        if name in content:
            setattr(posterior, name, content[name])
    return posterior
