"""The record of a denoising loop after some of its steps, and the handler that writes and replays it.

A pipeline cannot be entered in the middle of its loop. To resume, it runs again from its start: calls of
the denoisers are answered with zeros of the right shapes, steps of the schedulers too, but the last step of
each scheduler is answered with what it gave. From there on the latents, the schedulers and the random
generators are those of the first run, and the loop goes on. Must not know files, jobs or encoders.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from adaptive.denoise.randomness import Randomness, RandomState
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
    """Records one call of a pipeline and, given the record of an earlier one, resumes from it.

    Use it as a handler of `watch`, and call `step_done` after each step of the pipeline. `resumed_from` is
    the step that the record reaches. Raises `ReplayDiverged` from within the pipeline.
    """

    def __init__(
        self,
        pipe: Any,
        randomness: Randomness,
        device: torch.device,
        resume: DenoiseRecord | None = None,
    ) -> None:
        self.resumed_from = 0 if resume is None else resume.steps
        self.steps = 0
        self.calls_computed = 0
        self._names = {id(module): name for name, module in denoisers_of(pipe).items()}
        self._randomness = randomness
        self._device = device
        self._record = resume
        self._calls: list[tuple[str, int]] = []
        self._forms: list[Json] = [] if resume is None else list(resume.forms)
        self._schedulers: list[_WatchedScheduler] = []
        self._started = False
        self._boundary: tuple[int, RandomState] | None = None  # calls and generators after the last step
        self._last_of: dict[str, int] = (
            {} if resume is None else {name: i for i, (name, _) in enumerate(resume.calls)}
        )

    @property
    def is_replaying(self) -> bool:
        """Whether calls are still answered from the record."""
        return self._record is not None

    @property
    def has_begun(self) -> bool:
        """Whether a denoiser was called: nothing is encoded any more."""
        return self._started

    def around_denoiser(
        self, call_next: CallNext, module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> Any:
        """Answer a recorded call with zeros; make and note any other."""
        self._started = True
        name = self._names[id(module)]
        if self._record is not None:
            return zeros_of(self._recorded_form(self._record, name), self._device)
        result = call_next(*args, **kwargs)
        self.calls_computed += 1
        self._note(name, result)
        return result

    def around_step(
        self, call_next: CallNext, scheduler: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> Any:
        """Answer a recorded step from the record; take and note any other."""
        watched = self._watched(scheduler)
        name = str(self._schedulers.index(watched))
        if self._record is not None:
            number = len(self._calls)
            form = self._recorded_form(self._record, name)
            if self._last_of[name] != number:
                return zeros_of(form, self._device)
            return watched.resume(self._record.schedulers[int(name)], self._record.tensors, self._device)
        self._boundary = None
        result = call_next(*args, **kwargs)
        self._note(name, result)
        watched.took(result)
        return result

    def step_done(self) -> int:
        """Count a step of the pipeline; returns how many are done. The last recorded one ends the replay."""
        self.steps += 1
        record = self._record
        if record is not None and self.steps >= record.steps:
            if len(self._calls) != len(record.calls):
                raise ReplayDiverged(f"{len(self._calls)} calls instead of {len(record.calls)}")
            self._randomness.set(record.random)
            self._record = None
        self._boundary = len(self._calls), self._randomness.state()
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

    def _recorded_form(self, record: DenoiseRecord, name: str) -> Json:
        number = len(self._calls)
        if number >= len(record.calls) or record.calls[number][0] != name:
            raise ReplayDiverged(f"call {number} is one of {name}, which was not recorded there")
        self._calls.append(record.calls[number])
        return record.forms[record.calls[number][1]]

    def _note(self, name: str, result: Any) -> None:
        form = form_of(result)
        if form not in self._forms:
            self._forms.append(form)
        self._calls.append((name, self._forms.index(form)))

    def _watched(self, scheduler: Any) -> _WatchedScheduler:
        for each in self._schedulers:
            if each.scheduler is scheduler:
                return each
        self._schedulers.append(_WatchedScheduler(scheduler))
        return self._schedulers[-1]


class _WatchedScheduler:
    """One scheduler's last result and state. Tensors that no step has changed are not stored: its sigmas."""

    def __init__(self, scheduler: Any) -> None:
        self.scheduler = scheduler
        self._first = {
            name: (value, value._version)
            for name, value in vars(scheduler).items()
            if isinstance(value, Tensor)
        }
        self._result: Any = None

    def took(self, result: Any) -> None:
        # A copy, because the pipeline may change the latents in place, and does so again after a resume.
        self._result = mapped(result, lambda tensor: tensor.detach().clone())

    def stored(self, tensors: dict[str, Tensor]) -> Json:
        state = {
            name: value
            for name, value in vars(self.scheduler).items()
            if name != _CONFIGURATION and not self._is_unchanged(name, value)
        }
        try:
            return {"result": flatten(self._result, tensors), "state": flatten(state, tensors)}
        except NotStorable as error:
            raise NotStorable(f"{type(self.scheduler).__name__} keeps a {error}") from None

    def resume(self, stored: Json, tensors: Mapping[str, Tensor], device: torch.device) -> Any:
        vars(self.scheduler).update(restore(stored["state"], tensors, device))
        result = restore(stored["result"], tensors, device)
        self.took(result)
        return result

    def _is_unchanged(self, name: str, value: Any) -> bool:
        first = self._first.get(name)
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
