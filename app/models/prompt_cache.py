"""Caches encoded prompts in host memory, so that a repeated prompt does not need the text encoder.

Users try seeds and sizes on one prompt. If the encoder is off the device, each of these jobs would load it
again. Must not know more of a pipeline than its `encode_prompt`.
"""

import inspect
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import torch

KEPT_BYTES = 256 * 2**20


class PromptCache:
    """An LRU cache of `encode_prompt` results of one loaded model, at most `kept_bytes` in all."""

    def __init__(self, kept_bytes: int = KEPT_BYTES) -> None:
        self._kept_bytes = kept_bytes
        self._results: OrderedDict[str, Any] = OrderedDict()
        self.hits = 0

    def attach(self, pipe: Any) -> None:
        """Wrap the pipeline's `encode_prompt`; does nothing for a pipeline that has none."""
        encode = getattr(pipe, "encode_prompt", None)
        if callable(encode):
            pipe.encode_prompt = self._cached(encode)

    def _cached(self, encode: Callable[..., Any]) -> Callable[..., Any]:
        signature = inspect.signature(encode)

        def encode_prompt(*args: Any, **kwargs: Any) -> Any:
            given = signature.bind(*args, **kwargs)
            key = _key(given.arguments)
            if key is None:
                return encode(*args, **kwargs)
            device = given.arguments.get("device")
            if key in self._results:
                self._results.move_to_end(key)
                self.hits += 1
                kept, home = self._results[key]
                return _mapped(kept, lambda tensor: tensor.to(device or home, copy=True))
            result = encode(*args, **kwargs)
            home = next((t.device for t in _tensors(result)), torch.device("cpu"))
            self._keep(key, (_mapped(result, lambda tensor: tensor.to("cpu", copy=True)), home))
            return result

        return encode_prompt

    def _keep(self, key: str, entry: Any) -> None:
        self._results[key] = entry
        while sum(t.nbytes for kept, _ in self._results.values() for t in _tensors(kept)) > self._kept_bytes:
            self._results.popitem(last=False)


def encode_prompt_in(pipe: Any, dtype: torch.dtype) -> None:
    """Convert what `encode_prompt` returns, for a text encoder of another dtype than the model's."""
    encode = getattr(pipe, "encode_prompt", None)
    if not callable(encode):
        return
    signature = inspect.signature(encode)

    def encode_prompt(*args: Any, **kwargs: Any) -> Any:
        return _mapped(
            encode(*args, **kwargs), lambda each: each.to(dtype) if each.is_floating_point() else each
        )

    encode_prompt.__signature__ = signature  # type: ignore[attr-defined]  # inspect reads it
    pipe.encode_prompt = encode_prompt


def _key(arguments: dict[str, Any]) -> str | None:
    """The call's arguments as text; None if it has arguments without a unique text: tensors, images."""
    plain = (str, int, float, bool, type(None), torch.device, torch.dtype)
    for value in arguments.values():
        values = value if isinstance(value, list | tuple) else [value]
        if not all(isinstance(one, plain) for one in values):
            return None
    return repr(sorted(arguments.items()))


def _tensors(result: Any) -> list[torch.Tensor]:
    if isinstance(result, torch.Tensor):
        return [result]
    if isinstance(result, list | tuple):
        return [tensor for each in result for tensor in _tensors(each)]
    return []


def _mapped(result: Any, change: Callable[[torch.Tensor], torch.Tensor]) -> Any:
    """The same structure of tuples and lists, every tensor changed."""
    if isinstance(result, torch.Tensor):
        return change(result)
    if isinstance(result, list | tuple):
        return type(result)(_mapped(each, change) for each in result)
    return result
