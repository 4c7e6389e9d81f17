"""The random generators that a pipeline draws from: its own, and the default ones of host and device."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from adaptive.device.accelerator import is_available, random_states, set_random_state


@dataclass(frozen=True, slots=True)
class RandomState:
    """States of the default generators by device, and of a pipeline's own generators in their order."""

    default: Mapping[str, Tensor]
    own: tuple[Tensor, ...]

    def equals(self, other: RandomState) -> bool:
        """Whether both give the same numbers next."""
        pairs = [(state, other.default[name]) for name, state in self.default.items()]
        return all(torch.equal(one, two) for one, two in [*pairs, *zip(self.own, other.own, strict=True)])


class Randomness:
    """The generators of one pipeline call on `device`."""

    def __init__(self, device: torch.device, generators: Sequence[torch.Generator] = ()) -> None:
        self._device = device
        self._generators = tuple(generators)

    def state(self) -> RandomState:
        """Return the state now, on the host."""
        own = tuple(generator.get_state().clone() for generator in self._generators)
        return RandomState(random_states(self._device), own)

    def set(self, state: RandomState) -> None:
        """Set every generator. Raises `ValueError` for a state of other generators."""
        if len(state.own) != len(self._generators):
            raise ValueError(f"the record has {len(state.own)} generators, the call {len(self._generators)}")
        for generator, own in zip(self._generators, state.own, strict=True):
            generator.set_state(own)
        for name, default in state.default.items():
            device = torch.device(name)
            if is_available(device):
                set_random_state(device, default)
