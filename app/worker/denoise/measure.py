"""Measures what a denoise takes: the peak memory of its steps above the weights, and seconds a step.

The first step is left out, and so is each denoiser's first call: they bring weights to the device and load
kernels. So is a run in which memory went missing. Must not know what is learned from the figures.
"""

import time
from collections.abc import Mapping
from typing import Any

from torch import nn

from adaptive.denoise.watch import CallNext, DenoiseHandler
from adaptive.device.probe import MemoryProbe
from adaptive.types import MeasuredPeak


class MeasuredSteps(DenoiseHandler):
    """Sees each call from inside of all others, so that only what is really computed counts."""

    def __init__(self, probe: MemoryProbe) -> None:
        self._probe = probe
        self._schedulers: list[int] = []
        self._steps = 0  # of the first scheduler
        self._started_at = self._ended_at = 0.0
        self._is_measuring = False
        self._called: set[nn.Module] = set()
        self._peak: MeasuredPeak | None = None

    @property
    def step_seconds(self) -> float | None:
        """Mean seconds of a step after the first; None if there was only one."""
        if self._steps < 2:
            return None
        return (self._ended_at - self._started_at) / (self._steps - 1)

    def peak(self) -> MeasuredPeak | None:
        """The peak of all steps after the first; None if it was not measured."""
        return self._peak

    def around_denoiser(
        self, call_next: CallNext, module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> Any:
        if self._steps == 1 and not self._is_measuring:
            self._probe.reset_peak()
            self._is_measuring = True
        is_first = module not in self._called
        self._called.add(module)
        if is_first:
            self._note_peak()
        result = super().around_denoiser(call_next, module, args, kwargs)
        if is_first and self._is_measuring:
            self._probe.reset_peak()  # a second expert's weights have come to the device
        return result

    def _note_peak(self) -> None:
        if not self._is_measuring:
            return
        peak = self._probe.peak()
        if peak is not None and (self._peak is None or peak.allocated_bytes > self._peak.allocated_bytes):
            self._peak = peak

    def around_step(
        self, call_next: CallNext, scheduler: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> Any:
        result = call_next(*args, **kwargs)
        self._note_peak()
        if not self._schedulers:
            self._schedulers.append(id(scheduler))
        if id(scheduler) == self._schedulers[0]:
            self._steps += 1
            self._ended_at = time.monotonic()
            if self._steps == 1:
                self._started_at = self._ended_at
        return result
