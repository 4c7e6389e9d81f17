"""The record of a denoising loop after some of its steps, and the handler that writes and replays it.

A pipeline cannot be entered in the middle of its loop. To resume, in this process or in another one, it runs
again from its start: calls of the denoisers are answered with zeros of the right shapes, steps of the
schedulers too, but the last step of each scheduler is answered with what it gave. From there on the latents,
the schedulers and the random generators are those of the first run, and the loop goes on. Must not know
files, jobs or encoders, or why a run ended.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from adaptive.denoise.randomness import Randomness, RandomState
from adaptive.denoise.retries import attributes_of, set_attributes
from adaptive.denoise.values import Json, NotStorable, flatten, form_of, restore, zeros_of
from adaptive.denoise.watch import CallNext, DenoiseHandler, denoisers_of

_CONFIGURATION = "_internal_dict"  # what a scheduler was made with


class ReplayDiverged(Exception):
    """The pipeline does not make the calls that were recorded: it must begin anew without the record."""


@dataclass(frozen=True, slots=True)
class DenoiseRecord:
    """All that a resume needs after `steps` steps.

    `calls` are the calls in their order: a denoiser's name or a scheduler's number, and the number of the
    form of its result in `forms`. `schedulers` are last results and states, as `values.flatten` makes them,
    with their `tensors`.
    """

    steps: int
    calls: tuple[tuple[str, int], ...]
    forms: tuple[Json, ...]
    schedulers: tuple[Json, ...]
    tensors: Mapping[str, Tensor]
    random: RandomState

    @property
    def nbytes(self) -> int:
        """Bytes of its tensors."""
        return sum(tensor.nbytes for tensor in self.tensors.values())


class DenoiseLoop(DenoiseHandler):
    """Records the calls of one denoise, and answers what is known already when its pipeline runs again.

    A run may end between two calls, where only the pipeline's own code knows how to go on: then the pipeline
    is called again, and its finished steps are answered from memory. Given the record of another process, the
    first run resumes from that. Use it as a handler of `watch`; call `begin` before each run of the pipeline
    and `step_done` after each of its steps. `resumed_from` is the step that the record reaches; `finished`
    counts scheduler steps and `computed` denoiser calls, of all runs. Raises `ReplayDiverged` from within the
    pipeline.
    """

    def __init__(self, pipe: Any, device: torch.device, resume: DenoiseRecord | None = None) -> None:
        self.resumed_from = 0 if resume is None else resume.steps
        self.steps = 0
        self.computed = 0
        self._names = {id(module): name for name, module in denoisers_of(pipe).items()}
        self._device = device
        self._record = resume
        self._forget()

    def _forget(self) -> None:
        """Know no more than the record."""
        record = self._record
        self.finished = 0
        self._calls: list[tuple[str, int]] = [] if record is None else list(record.calls)
        self._forms: list[Json] = [] if record is None else list(record.forms)
        self._last_of = {name: number for number, (name, _) in enumerate(self._calls)}
        self._schedulers: list[_WatchedScheduler] = []
        if record is not None:
            self._schedulers = [
                _WatchedScheduler(partial(self._restored, each)) for each in record.schedulers
            ]
        self._open: dict[int, Any] = {}  # results of denoiser calls after the last scheduler step, by number
        self._after_last: RandomState | None = None  # that step
        self._fault: NotStorable | None = None

    def _restored(self, stored: Mapping[str, Json]) -> dict[str, Any]:
        assert self._record is not None
        return {name: restore(tree, self._record.tensors, self._device) for name, tree in stored.items()}

    def begin(self, randomness: Randomness, *, may_repeat: bool = True) -> None:
        """A run of the pipeline begins. Nothing is answered in it unless the pipeline's loop allows it."""
        if self._fault is not None or not may_repeat:
            self._forget()
        for each in self._schedulers:
            each.scheduler = None  # a pipeline may make a copy in each run
        self._randomness = randomness
        self.steps = self._number = 0
        self.has_begun = False  # no denoiser was called: the pipeline may still be encoding
        self._boundary: tuple[int, RandomState] | None = None  # calls and generators after the last step

    @property
    def is_replaying(self) -> bool:
        """Whether calls are still answered from what is known."""
        return self._number < len(self._calls) or self.steps < self.resumed_from

    def around_denoiser(
        self, call_next: CallNext, module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> Any:
        """Answer a call of a finished step with zeros, and one after it with its result; make any other."""
        self.has_begun = True
        name, number = self._names[id(module)], self._number
        if self.is_replaying:
            form = self._known_form(name)
            return self._open[number] if number in self._open else zeros_of(form, self._device)
        result = call_next(*args, **kwargs)
        self._note(name, result)
        self._open[number] = result
        self.computed += 1
        return result

    def around_step(
        self, call_next: CallNext, scheduler: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> Any:
        """Answer a finished step; take and note any other."""
        watched = self._watched(scheduler)
        name = str(self._schedulers.index(watched))
        if self.is_replaying:
            number, form = self._number, self._known_form(name)
            if self._last_of[name] != number:
                return zeros_of(form, self._device)
            if self._after_last is not None and self._number == len(self._calls) - len(self._open):
                self._randomness.set(self._after_last)
            return watched.resume()
        self._boundary = None
        result = call_next(*args, **kwargs)
        after = self._randomness.state()
        watched.took(result)  # memory may be missing for it: then this step is not finished
        self._last_of[name] = self._number
        self._note(name, result)
        self._open.clear()
        self._after_last = after
        self.finished += 1
        return result

    def step_done(self) -> int:
        """Count a step of the pipeline; returns how many are done in this run."""
        self.steps += 1
        if self._record is not None and self.steps == self.resumed_from:
            if self._number != len(self._record.calls):
                raise ReplayDiverged(f"{self._number} calls instead of {len(self._record.calls)}")
            self._randomness.set(self._record.random)
        self._boundary = self._number, self._randomness.state()
        return self.steps

    @property
    def can_capture(self) -> bool:
        """Whether a step has been done and no scheduler is in the next one."""
        return self._boundary is not None and not self.is_replaying

    def capture(self) -> DenoiseRecord:
        """The record after the last step, its tensors copied to the host; see `can_capture`.

        Calls of denoisers since then do not count. Raises `NotStorable` for a scheduler that keeps something
        else than numbers and tensors.
        """
        assert self._boundary is not None
        if self._fault is not None:
            raise self._fault
        calls, random = self._boundary
        tensors: dict[str, Tensor] = {}
        return DenoiseRecord(
            steps=self.steps,
            calls=tuple(self._calls[:calls]),
            forms=tuple(self._forms),
            schedulers=tuple(each.stored(tensors) for each in self._schedulers),
            tensors=tensors,
            random=random,
        )

    def _known_form(self, name: str) -> Json:
        number = self._number
        if number >= len(self._calls) or self._calls[number][0] != name:
            raise ReplayDiverged(f"call {number} is one of {name}, which was not recorded there")
        self._number += 1
        return self._forms[self._calls[number][1]]

    def _note(self, name: str, result: Any) -> None:
        form: Json = None
        try:
            form = form_of(result)
        except NotStorable as error:
            self._fault = error
        if form not in self._forms:
            self._forms.append(form)
        self._calls.append((name, self._forms.index(form)))
        self._number += 1

    def _watched(self, scheduler: Any) -> _WatchedScheduler:
        """The scheduler of this run: schedulers are told apart by the order of their first steps."""
        for each in self._schedulers:
            if each.scheduler in (None, scheduler):
                each.watch(scheduler)
                return each
        self._schedulers.append(_WatchedScheduler())
        self._schedulers[-1].watch(scheduler)
        return self._schedulers[-1]


class _WatchedScheduler:
    """One scheduler's last result and state. Tensors that no step has changed are not stored: its sigmas."""

    def __init__(self, read: Callable[[], Any] | None = None) -> None:
        """`read` restores what an earlier process stored."""
        self.scheduler: Any = None
        self._read = read  # until it is resumed
        self._first: dict[str, tuple[Tensor, int]] | None = None
        self._result: Any = None
        self._attributes: dict[str, Any] = {}

    def watch(self, scheduler: Any) -> None:
        """It is this one in the present run."""
        self.scheduler = scheduler
        if self._first is None:
            tensors = {name: value for name, value in vars(scheduler).items() if isinstance(value, Tensor)}
            self._first = {name: (value, value._version) for name, value in tensors.items()}

    def took(self, result: Any) -> None:
        """A step gave `result`."""
        # A copy, because the pipeline may change the latents in place, and does so again after a resume.
        self._result = mapped(result, lambda tensor: tensor.detach().clone())
        self._attributes = attributes_of(self.scheduler)

    def resume(self) -> Any:
        """Set the scheduler to what it was after its last step; returns what that gave."""
        if self._read is not None:
            stored = self._read()
            vars(self.scheduler).update(stored["state"])
            self.took(stored["result"])
            self._read = None
        set_attributes(self.scheduler, self._attributes)
        return mapped(self._result, Tensor.clone)

    def stored(self, tensors: dict[str, Tensor]) -> Json:
        """Its last result and state, as `values.flatten` makes them."""
        state = {
            name: value
            for name, value in self._attributes.items()
            if name != _CONFIGURATION and not self._is_unchanged(name, value)
        }
        try:
            return {"result": flatten(self._result, tensors), "state": flatten(state, tensors)}
        except NotStorable as error:
            raise NotStorable(f"{type(self.scheduler).__name__} keeps a {error}") from None

    def _is_unchanged(self, name: str, value: Any) -> bool:
        first = (self._first or {}).get(name)
        return first is not None and value is first[0] and value._version == first[1]


def mapped(value: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """The same containers with every tensor changed."""
    if isinstance(value, Tensor):
        return change(value)
    if type(value) in (tuple, list):
        return type(value)(mapped(item, change) for item in value)
    if isinstance(value, dict):
        items = {key: mapped(item, change) for key, item in value.items()}
        return items if type(value) is dict else type(value)(**items)
    return value
