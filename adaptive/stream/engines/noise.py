"""Noise that a network injects: every chunk of a stream draws the random numbers of the first one.

torch's default generator belongs to all threads. A chunk therefore draws from a generator of its own, which
begins where the default one was at the stream's first chunk.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping, MutableMapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from adaptive.device.accelerator import random_state, set_random_state

_RNG = "rng"  # key of a stream's state: the state of the default generator at the first chunk


@contextmanager
def same_noise(state: MutableMapping[Hashable, Any], device: torch.device) -> Iterator[None]:
    """Let a chunk draw the random numbers that the stream's first chunk drew, in this thread only.

    The default generator advances once for the whole stream, as it does in a batched decode.
    """
    if device.type == "meta":
        yield
        return
    is_first = _RNG not in state
    first: Tensor = state.setdefault(_RNG, random_state(device))
    generator = torch.Generator(device)
    generator.set_state(first.cpu())  # a stream moves its state to the device
    with _Drawing(generator):
        yield
    if is_first and torch.equal(random_state(device), first):  # else another thread has advanced it
        set_random_state(device, generator.get_state())


class _Drawing(TorchFunctionMode):
    """Calls of `torch.randn` without a generator draw from this one."""

    def __init__(self, generator: torch.Generator) -> None:
        super().__init__()
        self._generator = generator

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        named = dict(kwargs or {})
        if func is torch.randn and named.get("generator") is None:
            named["generator"] = self._generator
        return func(*args, **named)


@contextmanager
def noise_kept_at_failure(device: torch.device) -> Iterator[None]:
    """Put the default generator back if the call within fails: another attempt draws what it would have."""
    if device.type == "meta":
        yield
        return
    before = random_state(device)
    try:
        yield
    except BaseException:
        set_random_state(device, before)
        raise
