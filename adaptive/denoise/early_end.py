"""Ends a denoising loop before its last step, with what its steps aim at as the result.

A pipeline cannot be left in the middle of its loop without what it does after that. So the loop runs to its
end, but nothing more is computed: denoisers give zeros, and schedulers the clean estimate of the last step
that was taken. Must not know why a loop ends early.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from adaptive.denoise.preview.clean_estimate import NoEstimate, clean_estimate
from adaptive.denoise.record import mapped
from adaptive.denoise.watch import CallNext, DenoiseHandler, scheduler_name


class EarlyEnd(DenoiseHandler):
    """Ends the loop with the step after `end_next` is called.

    `step` is that step once it is done, None before. Call `step_done` after each step.
    """

    def __init__(self, pipe: Any) -> None:
        self._pipe = pipe
        self.step: int | None = None
        self._is_wanted = False
        self._given: dict[type[nn.Module], list[Any]] = {}  # results of the last step, as empty tensors
        self._calls = 0
        self._answers: dict[str, Any] = {}  # by scheduler

    def end_next(self) -> None:
        """Let the next step be the last that is computed. It must not be the loop's own last one."""
        self._is_wanted = True

    def step_done(self, step: int) -> None:
        """Note that a step of the pipeline is done."""
        if self._answers and self.step is None:
            self.step = step

    def around_denoiser(
        self, call_next: CallNext, module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> Any:
        """Make the call; after the end give zeros."""
        given = self._given.setdefault(type(module), [])  # experts that take turns are of one class
        if self.step is not None and given:
            self._calls += 1
            return mapped(given[(self._calls - 1) % len(given)], _zeros)
        result = call_next(*args, **kwargs)
        if self._is_wanted and self.step is None:
            given.append(mapped(result, lambda tensor: tensor.new_empty(()).expand(tensor.shape)))
        return result

    def around_step(
        self, call_next: CallNext, scheduler: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> Any:
        """Take the step; the last one gives its clean estimate, and so does every one after it."""
        name = scheduler_name(self._pipe, scheduler)
        if self.step is not None and name in self._answers:
            return mapped(self._answers[name], torch.clone)
        result = call_next(*args, **kwargs)
        if self._is_wanted:
            result = _with_estimate(scheduler, args, kwargs, result)
            self._answers[name] = mapped(result, lambda tensor: tensor.detach().clone())
        return result


def _zeros(form: Tensor) -> Tensor:
    return torch.zeros(form.shape, dtype=form.dtype, device=form.device)


def _with_estimate(scheduler: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any], result: Any) -> Any:
    """The result with the clean estimate in place of the next latents; the result itself without one."""
    try:
        estimate = clean_estimate(scheduler, args, kwargs, result)
    except NoEstimate:
        return result
    latents: Tensor = result[0]
    clean = estimate.part(torch.clone).to(latents.dtype)
    if isinstance(result, tuple):
        return (clean, *result[1:])
    return type(result)(**{**result, "prev_sample": clean})
