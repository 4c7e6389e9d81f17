"""Keeps what a denoising loop has computed, in memory, so that its pipeline can run again from its start.

An out-of-memory between the watched calls ends the pipeline's call: only its own code knows how to go on
there. The pipeline is then called again with the same arguments. Denoiser calls of finished steps are
answered without computing, with zeros of the right shapes; their scheduler steps with the last result, so
that after them everything is as it was. Must not know files, pipelines or why a run ended.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from adaptive.denoise.retries import StepState
from adaptive.denoise.watch import CallNext, DenoiseHandler


@dataclass(slots=True)
class _Loop:
    """The steps of one scheduler, or of one of the copies that a pipeline makes of it."""

    result: Any = None
    state: StepState | None = None


@dataclass(slots=True)
class _Run:
    """How far one call of the pipeline is."""

    steps: int = 0  # scheduler steps
    calls: int = 0  # denoiser calls since the last of them
    schedulers: list[int] = field(default_factory=list)  # ids, in the order of their first steps


class KeptSteps(DenoiseHandler):
    """Answers what is known already; call `begin` before each call of the pipeline.

    It is the outermost handler. `steps` counts finished scheduler steps, `computed` denoiser calls whose
    result arrived here.
    """

    def __init__(self) -> None:
        self.computed = 0
        self._run = _Run()
        self._forget()

    def _forget(self) -> None:
        self.steps = 0
        self._loops: list[_Loop] = []
        self._patterns: list[list[Any]] = []  # of each step's denoiser calls
        self._open: list[Any] = []  # results of the denoiser calls after the last step
        self._repeatable = True  # one scheduler's results all have one shape

    @property
    def is_repeating(self) -> bool:
        """Whether the run is still in steps that an earlier one finished."""
        return self._run.steps < self.steps

    def begin(self, *, may_repeat: bool = True) -> None:
        """A call of the pipeline begins. Nothing is answered in it unless the pipeline's loop allows it."""
        self._run = _Run()
        if not (self._repeatable and may_repeat):
            self._forget()

    def around_denoiser(
        self,
        call_next: CallNext,
        module: nn.Module,  # noqa: ARG002 - calls are told apart by their order
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
    ) -> Any:
        run, place = self._run, self._run.calls
        run.calls += 1
        if run.steps < self.steps:
            patterns = self._patterns[run.steps]
            if place < len(patterns):
                return _zeros(patterns[place])
        elif place < len(self._open):
            return self._open[place]
        result = call_next(*args, **kwargs)
        self.computed += 1
        if run.steps == self.steps:
            self._open.append(result)
        return result

    def around_step(
        self, call_next: CallNext, scheduler: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> Any:
        run = self._run
        if id(scheduler) not in run.schedulers:
            run.schedulers.append(id(scheduler))
        number = run.schedulers.index(id(scheduler))
        if run.steps < self.steps:
            run.steps, run.calls = run.steps + 1, 0
            loop = self._loops[number]
            assert loop.state is not None
            loop.state.restore(scheduler, _generators((*args, *kwargs.values())))
            return loop.result
        result = call_next(*args, **kwargs)
        while len(self._loops) <= number:
            self._loops.append(_Loop())
        loop = self._loops[number]
        self._repeatable &= loop.result is None or _pattern(loop.result) == _pattern(result)
        loop.result, loop.state = result, StepState.of(scheduler, (*args, *kwargs.values()))
        self._patterns.append([_pattern(each) for each in self._open])
        self._open = []
        self.steps += 1
        run.steps, run.calls = run.steps + 1, 0
        return result


def _generators(arguments: tuple[Any, ...]) -> list[torch.Generator]:
    found = [each for value in arguments for each in (value if isinstance(value, list) else [value])]
    return [each for each in found if isinstance(each, torch.Generator)]


@dataclass(frozen=True, slots=True)
class _Shape:
    shape: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device


def _pattern(value: Any) -> Any:
    """The structure of a result, with shapes in place of its tensors."""
    if isinstance(value, Tensor):
        return _Shape(tuple(value.shape), value.dtype, value.device)
    if isinstance(value, dict):
        return type(value), {name: _pattern(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return type(value), [_pattern(each) for each in value]
    return value


def _zeros(pattern: Any) -> Any:
    """A result of that structure; its tensors take a few bytes."""
    if isinstance(pattern, _Shape):
        return torch.zeros((), dtype=pattern.dtype, device=pattern.device).expand(pattern.shape)
    if isinstance(pattern, tuple) and len(pattern) == 2 and isinstance(pattern[1], dict):
        made = {name: _zeros(each) for name, each in pattern[1].items()}
        return made if pattern[0] is dict else pattern[0](**made)
    if isinstance(pattern, tuple) and len(pattern) == 2 and isinstance(pattern[1], list):
        return pattern[0](_zeros(each) for each in pattern[1])
    return pattern
