"""Noise that a network injects: every chunk of a stream draws the random numbers of the first one."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, MutableMapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

_RNG = "rng"  # key of a stream's state: the state of the random number generator at the first chunk


@contextmanager
def same_noise(state: MutableMapping[Hashable, Any], device: torch.device) -> Iterator[None]:
    """Let a chunk draw the random numbers that the stream's first chunk drew.

    The generator advances once for the whole stream, as it does in a batched decode.
    """
    if device.type == "meta":
        yield
        return
    before = _rng_state(device)
    first = state.setdefault(_RNG, before)
    restore = first is not before
    try:
        if restore:
            _set_rng_state(device, first)
        yield
    except BaseException:
        restore = True
        raise
    finally:
        if restore:
            _set_rng_state(device, before)


def _rng_state(device: torch.device) -> Tensor:
    return torch.cuda.get_rng_state(device) if device.type == "cuda" else torch.get_rng_state()


def _set_rng_state(device: torch.device, state: Tensor) -> None:
    if device.type == "cuda":
        torch.cuda.set_rng_state(state.cpu(), device)
    else:
        torch.set_rng_state(state.cpu())
