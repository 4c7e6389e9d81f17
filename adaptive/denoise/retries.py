"""Repeats a denoiser call or a scheduler step that ran out of memory, with the same inputs.

Owns the attempts at one call, and what a failed attempt may have changed: the scheduler's history and random
state. `make_room` decides what to do between two attempts. Must not know pipelines, placements or jobs.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from adaptive.denoise.split_batch import can_split, split_call
from adaptive.denoise.watch import CallNext, DenoiseHandler
from adaptive.device.out_of_memory import MemoryFailure, memory_failure, release_frames

# Attempts at a call whose error is only possibly an out-of-memory.
DOUBTFUL_ATTEMPTS = 3
_ASKED = re.compile(r"Tried to allocate ([\d.]+) (bytes|KiB|MiB|GiB)")
_UNITS = {"bytes": 1, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30}


@dataclass(frozen=True, slots=True)
class MissingMemory:
    """An out-of-memory of one call. `module` is None if it was a scheduler's step or no watched call at all.

    `splits`: whether the call has a batch of two branches that could go one after the other.
    `asked_bytes`: of the allocation that failed; 0 if the error does not say. `is_refusal`: nothing has
    failed yet, a plan found no room.
    """

    message: str
    asked_bytes: int = 0
    module: nn.Module | None = None
    splits: bool = False
    is_refusal: bool = False


MakeRoom = Callable[[MissingMemory], bool]


def missing_memory(error: BaseException, module: nn.Module | None = None, **fields: bool) -> MissingMemory:
    """What an error says about the memory that is missing."""
    message = str(error).partition("\n")[0][:300]
    found = _ASKED.search(message)
    asked_bytes = round(float(found[1]) * _UNITS[found[2]]) if found else 0
    return MissingMemory(message, asked_bytes, module, **fields)


class Retries(DenoiseHandler):
    """Makes each call again until it succeeds or `make_room` has nothing left to do.

    `make_room(missing)` runs between two attempts, when the failed one's tensors are freed. It may move
    weights, set `splits_batch` or `on_host`. It returns whether another attempt is worthwhile; if not, the
    error is raised. `repeated` counts the attempts after first ones.
    """

    def __init__(self, make_room: MakeRoom) -> None:
        self._make_room = make_room
        self.splits_batch = False
        self.on_host = False
        self.repeated = 0

    def around_denoiser(
        self, call_next: CallNext, module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> Any:
        splits = can_split(args, kwargs)

        def attempt() -> Any:
            call = _on_host(call_next, module) if self.on_host else call_next
            if self.splits_batch and splits:
                return split_call(call, args, kwargs)
            return call(*args, **kwargs)

        return self._until_it_fits(attempt, module, splits=splits)

    def around_step(
        self, call_next: CallNext, scheduler: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> Any:
        state = StepState.of(scheduler, (*args, *kwargs.values()))

        def attempt() -> Any:
            state.restore()
            return call_next(*args, **kwargs)

        return self._until_it_fits(attempt, None, splits=False)

    def _until_it_fits(self, attempt: Callable[[], Any], module: nn.Module | None, *, splits: bool) -> Any:
        doubtful = 0
        while True:
            try:
                return attempt()
            except Exception as caught:
                found = memory_failure(caught)
                doubtful += found is MemoryFailure.POSSIBLE
                if found is None or doubtful > DOUBTFUL_ATTEMPTS:
                    raise
                release_frames(caught)  # else they keep the failed attempt's tensors
                error = caught
            if not self._make_room(missing_memory(error, module, splits=splits)):
                raise error
            self.repeated += 1


class StepState:
    """What a scheduler's step may change: its attributes and the random generators that it draws from."""

    def __init__(self, scheduler: Any, generators: list[torch.Generator]) -> None:
        self._scheduler = scheduler
        self._attributes = attributes_of(scheduler)
        self._generators = [(each, each.get_state()) for each in generators]
        self._default = torch.get_rng_state()

    @classmethod
    def of(cls, scheduler: Any, arguments: tuple[Any, ...]) -> "StepState":
        """The state before a step with these arguments."""
        found = [each for value in arguments for each in (value if isinstance(value, list) else [value])]
        return cls(scheduler, [each for each in found if isinstance(each, torch.Generator)])

    def restore(self) -> None:
        """Set everything back."""
        set_attributes(self._scheduler, self._attributes)
        for generator, state in self._generators:
            generator.set_state(state)
        torch.set_rng_state(self._default)


def attributes_of(scheduler: Any) -> dict[str, Any]:
    """A copy of the scheduler's attributes and of the lists in them, which multistep schedulers change."""
    return _copied(vars(scheduler))


def set_attributes(scheduler: Any, attributes: Mapping[str, Any]) -> None:
    """Give the scheduler the attributes that `attributes_of` returned, and no others."""
    target = vars(scheduler)
    for name in target.keys() - attributes.keys():
        del target[name]
    target.update(_copied(attributes))


def _copied(attributes: Mapping[str, Any]) -> dict[str, Any]:
    return {name: list(value) if isinstance(value, list) else value for name, value in attributes.items()}


def _on_host(call: CallNext, module: nn.Module) -> CallNext:
    """The call with the denoiser and its inputs in host memory; its result comes back to the device."""

    def on_host(*args: Any, **kwargs: Any) -> Any:
        devices = [each.device for each in _tensors((args, kwargs)) if each.device.type != "cpu"]
        module.to("cpu")
        result = call(*moved(args, "cpu"), **moved(kwargs, "cpu"))
        return moved(result, devices[0]) if devices else result

    return on_host


def moved(value: Any, device: torch.device | str) -> Any:
    """The same structure of tuples, lists and dicts, with every tensor on `device`."""
    if isinstance(value, Tensor):
        return value.to(device)
    if isinstance(value, list | tuple):
        return type(value)(moved(each, device) for each in value)
    if isinstance(value, dict):  # diffusers' outputs are dicts, too
        if type(value) is dict:
            return {name: moved(each, device) for name, each in value.items()}
        return type(value)(**{name: moved(each, device) for name, each in value.items()})
    return value


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, dict):
        yield from _tensors(list(value.values()))
    elif isinstance(value, list | tuple):
        for each in value:
            yield from _tensors(each)
