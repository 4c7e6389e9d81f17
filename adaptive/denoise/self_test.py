"""Finds out whether a pipeline's loop can be resumed: a small call of it, and the same call resumed.

A loop may feed something into later steps that does not pass through `scheduler.step`. Then a resumed loop
asks its denoiser something else than the first one. That is what is compared, so the denoiser itself need not
run: each kind of call is made once, and all others are answered with noise of the same form. Must not know
how a request becomes a call.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from adaptive.denoise.encoders import EncoderRecord
from adaptive.denoise.record import DenoiseRecord, ReplayDiverged, mapped
from adaptive.denoise.resumable import Resumable, resumable
from adaptive.denoise.values import Json, NotStorable, flatten, form_of
from adaptive.denoise.watch import CallNext, DenoiseHandler, watch

STEPS = 3
Record = tuple[EncoderRecord, DenoiseRecord]
# Records a pipeline's call with its generators within a block; yields what to call after each step.
Recording = Callable[
    [Any, torch.device, Sequence[torch.Generator]], AbstractContextManager[Callable[[], object]]
]


class NotResumable(Exception):
    """The pipeline's loop cannot be resumed; the message says why."""


def check_resumes(call: Callable[[Recording], object]) -> None:
    """Raise `NotResumable` unless the pipeline resumes from its first and its second step with equal bits.

    `call(recording)` calls the pipeline for a small video of `STEPS` steps, with the same generators each
    time, within the context `recording(pipe, device, generators)`; after each step it calls what that yields.
    """
    first = _First()
    try:
        call(first.recording)
        if len(first.records) < STEPS:
            raise NotResumable("it does not tell when a step is done")
        for resume in first.records[: STEPS - 1]:
            again = _Again(first, resume)
            call(again.recording)
            again.check_complete()
    except NotStorable as error:
        raise NotResumable(str(error)) from None
    except ReplayDiverged as error:
        raise NotResumable(f"its calls differ from one run to the next: {error}") from None


class _Arguments(NamedTuple):
    """The arguments of a call, as far as they can be stored."""

    trees: list[Json]
    tensors: dict[str, Tensor]

    def equals(self, other: _Arguments) -> bool:
        """Whether both are the same, bit for bit."""
        same = self.trees == other.trees and self.tensors.keys() == other.tensors.keys()
        return same and all(_same_bits(tensor, other.tensors[name]) for name, tensor in self.tensors.items())


def _arguments(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> _Arguments:
    trees: list[Json] = []
    tensors: dict[str, Tensor] = {}
    for value in (*args, *kwargs.values()):
        if isinstance(value, torch.Generator):
            trees.append({"generator": flatten(value.get_state(), tensors)})
            continue
        try:
            trees.append(flatten(value, tensors))
        except NotStorable:
            trees.append({"unknown": type(value).__qualname__})
    return _Arguments(trees, tensors)


def _same_bits(one: Tensor, other: Tensor) -> bool:
    if one.shape != other.shape or one.dtype != other.dtype:
        return False
    one, other = (tensor.flatten().contiguous().view(torch.uint8) for tensor in (one, other))
    return torch.equal(one, other)


class _First(DenoiseHandler):
    """Remembers what denoisers and schedulers were asked, and what the denoisers answered."""

    def __init__(self) -> None:
        self.records: list[Record] = []
        self.asked: list[_Arguments] = []
        self.answers: dict[int, Any] = {}
        self._made: dict[str, Any] = {}
        self._run: Resumable | None = None

    @contextmanager
    def recording(
        self, pipe: Any, device: torch.device, generators: Sequence[torch.Generator]
    ) -> Iterator[Callable[[], None]]:
        """Watch the pipeline in the block."""
        with watch(pipe, [self]), resumable(pipe, device, generators) as self._run:
            yield self.step_done

    def step_done(self) -> None:
        """Keep a record of each step."""
        assert self._run is not None
        self._run.loop.step_done()
        self.records.append((self._run.encoders.record(), self._run.loop.capture()))

    def around_denoiser(
        self, call_next: CallNext, module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> Any:
        """Make the first call of each form; answer others with noise of the form of its result."""
        arguments = _arguments(args, kwargs)
        forms = [form_of(tensor) for tensor in arguments.tensors.values()]
        kind = f"{id(module)} {forms}"
        if kind not in self._made:
            self._made[kind] = call_next(*args, **kwargs)
        numbers = torch.Generator().manual_seed(len(self.asked))

        def noise(tensor: Tensor) -> Tensor:
            return torch.randn(tensor.shape, generator=numbers).to(tensor.device, tensor.dtype)

        answer = mapped(self._made[kind], noise)
        self.answers[len(self.asked)] = answer
        self.asked.append(arguments)
        return answer

    def around_step(
        self, call_next: CallNext, scheduler: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> Any:
        """Take the step."""
        del scheduler
        self.asked.append(_arguments(args, kwargs))
        return call_next(*args, **kwargs)


class _Again(DenoiseHandler):
    """Compares what a resumed loop asks with what the first one asked, and answers the same."""

    def __init__(self, first: _First, resume: Record) -> None:
        self._first = first
        self._resume = resume
        self._number = len(resume[1].calls)

    @contextmanager
    def recording(
        self, pipe: Any, device: torch.device, generators: Sequence[torch.Generator]
    ) -> Iterator[Callable[[], object]]:
        """Watch the pipeline in the block."""
        with watch(pipe, [self]), resumable(pipe, device, generators, self._resume) as run:
            yield run.loop.step_done

    def around_denoiser(
        self, call_next: CallNext, module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> Any:
        """Answer as in the first run."""
        del call_next
        number = self._compared(args, kwargs, type(module).__name__)
        if number not in self._first.answers:
            raise ReplayDiverged(f"call {number} was a step")
        return self._first.answers[number]

    def around_step(
        self, call_next: CallNext, scheduler: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> Any:
        """Take the step."""
        self._compared(args, kwargs, f"{type(scheduler).__name__}.step")
        return call_next(*args, **kwargs)

    def check_complete(self) -> None:
        """Raise `NotResumable` unless all calls of the first run were made."""
        if self._number != len(self._first.asked):
            raise NotResumable(f"it ends after {self._number} calls instead of {len(self._first.asked)}")

    def _compared(self, args: tuple[Any, ...], kwargs: Mapping[str, Any], called: str) -> int:
        number, asked = self._number, self._first.asked
        self._number += 1
        if number >= len(asked) or not asked[number].equals(_arguments(args, kwargs)):
            raise NotResumable(
                f"resumed after step {self._resume[1].steps}, it gives {called} other arguments: "
                "something passes from step to step outside of scheduler.step"
            )
        return number
