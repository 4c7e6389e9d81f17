"""Peak live bytes of any torch call, counted at the dispatcher: exact on meta tensors, which compute nothing.

Owns the accounting of tensor storages from allocation to release. It does not know VAEs, strategies or the
real memory of devices. Memory used inside one operator (a convolution's workspace) is invisible here;
`adaptive.memory.margins.LearnedMargins` learns it.
"""

import math
import weakref
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from adaptive.memory import meta_results


@dataclass(frozen=True, slots=True)
class Trace:
    """Live bytes of one call. Weights, inputs and all else that existed before it do not count."""

    peak_bytes: int
    left_bytes: int  # still alive after the call, its result included
    peak_operator: str
    operators: int


class LiveBytes(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch's base class is untyped
    """Counts the bytes of storages created while active. A storage is released with its last tensor.

    A storage that is first seen as an operator's argument existed before and is never counted, so weights and
    inputs need no list. Views and in-place results share their base's storage and add nothing.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # same
        self.live_bytes = 0
        self.peak_bytes = 0
        self.peak_operator = ""
        self.operators = 0
        self._storages: dict[int, tuple[weakref.ref[Any], int]] = {}

    def reset_peak(self) -> None:
        """Restart the peak from the bytes that are alive now."""
        self.peak_bytes = self.live_bytes
        self.peak_operator = ""

    @contextmanager
    def active(self) -> Iterator[None]:
        """Count within the block, with autograd off: its storages are not part of a decode."""
        with torch.no_grad(), _FusedAttention(self), self:
            yield

    def note_temporary(self, extra_bytes: int, operator: str) -> None:
        """Count bytes that an operator allocates and releases internally."""
        if self.live_bytes + extra_bytes > self.peak_bytes:
            self.peak_bytes = self.live_bytes + extra_bytes
            self.peak_operator = operator

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        for tensor in _tensors((args, *(kwargs or {}).values())):
            self._record(tensor, created=False)
        result = meta_results.call(func, args, kwargs or {})
        self.operators += 1
        for tensor in _tensors((result,)):
            self._record(tensor, created=True)
        self.note_temporary(0, str(func))
        return result

    def _record(self, tensor: Tensor, *, created: bool) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        known = self._storages.get(key)
        counted = storage.nbytes() if created else 0
        if known is not None:
            if not known[1] or storage.nbytes() == known[1]:
                return
            counted = storage.nbytes()  # resized in place
            self.live_bytes -= known[1]
        # The wrapper object lives exactly as long as the storage itself (torch keeps it alive from C++), so
        # its weak reference is called at the moment the memory is released.
        self._storages[key] = (weakref.ref(storage, partial(self._release, key)), counted)
        self.live_bytes += counted

    def _release(self, key: int, _: object) -> None:
        self.live_bytes -= self._storages.pop(key)[1]


def _tensors(values: Iterable[Any]) -> Iterator[Tensor]:
    """Tensors among an operator's arguments or results, also inside lists and tuples."""
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, tuple | list):
            yield from _tensors(value)


class _FusedAttention(TorchFunctionMode):
    """Counts attention as fused kernels need it: the output and one float32 a row.

    The fallback on meta tensors would allocate the whole matrix of scores.
    """

    def __init__(self, live: LiveBytes) -> None:
        super().__init__()
        self._live = live

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is not torch.nn.functional.scaled_dot_product_attention:
            return func(*args, **kwargs)
        query = args[0] if args else kwargs["query"]
        value = args[2] if len(args) > 2 else kwargs["value"]
        result = query.new_empty((*query.shape[:-1], value.shape[-1]))
        self._live.note_temporary(4 * math.prod(query.shape[:-1]), "scaled_dot_product_attention")
        return result


def trace_peak(call: Callable[[], Any]) -> Trace:
    """Run `call` on meta tensors and return its peak live bytes, including the result it returns."""
    live = LiveBytes()
    with torch.inference_mode(False), live.active():
        result = call()
    left_bytes = live.live_bytes
    del result
    return Trace(live.peak_bytes, left_bytes, live.peak_operator, live.operators)
