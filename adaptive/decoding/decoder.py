"""Decodes in the memory that is free: one VAE, any number of decodes.

Owns what lasts from one decode to the next: the policy, what was learned, the last report. All else is looked
up when a decode begins (`adaptive.decoding.one_decode`). It does not know jobs or files.
"""

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

from torch import Tensor

from adaptive.decoding.events import DecodeEvent as DecodeEvent
from adaptive.decoding.live_device import LiveDevices
from adaptive.decoding.one_decode import OneDecode, profile_of_view, shape_of
from adaptive.device.probe import MemoryProbe
from adaptive.memory.margins import LearnedMargins
from adaptive.memory.profile import MemoryProfile
from adaptive.memory.speed import Speeds
from adaptive.planning.planner import PlanInputs, Policy
from adaptive.stream import view_of
from adaptive.stream.inputs import refuse_gradient
from adaptive.stream.offload import run_offload_hook
from adaptive.types import DecodePlan, DecodeReport


class AdaptiveDecoder:
    """Decodes latents with one VAE in the memory that is free. Not thread-safe.

    The VAE is looked at anew for each decode: it may have been moved, cast, offloaded or compiled since the
    last one. By default `profile` is that of the VAE, and `probe` reads the VAE's device. `residuals` holds
    the learned margins and `speeds` the timings; the decoder predicts with both and adds to them. `on_event`
    receives each event as it happens. `inputs`, if given, are the planner's inputs and hold the residuals
    instead. `keeps_output`: the caller gathers all frames on the device, so the plan leaves room for them.
    `wait_for_memory(needed_bytes)` is called where even the smallest chunk ran out of memory: it may wait for
    other programs, and returns whether to try again; without it the decode fails.
    With `shares_costs`, margins and speeds are those that all decodes of this process on the device learn.
    """

    def __init__(
        self,
        vae: Any,
        *,
        profile: MemoryProfile | None = None,
        probe: MemoryProbe | None = None,
        policy: Policy | None = None,
        residuals: LearnedMargins | None = None,
        speeds: Speeds | None = None,
        on_event: Callable[[DecodeEvent], None] | None = None,
        inputs: PlanInputs | None = None,
        keeps_output: bool = False,
        shares_costs: bool = False,
        wait_for_memory: Callable[[int], bool] | None = None,
    ) -> None:
        self._vae = vae
        self._given_profile = profile
        self._policy = policy or Policy()
        self._devices = LiveDevices(probe, residuals, speeds, shares_costs=shares_costs)
        self._inputs = inputs
        self._on_event = on_event
        self._keeps_output = keeps_output
        self._wait_for_memory = wait_for_memory
        self._report: DecodeReport | None = None

    @property
    def profile(self) -> MemoryProfile:
        """Memory profile of the VAE as it is now. Raises `UnsupportedVae` where it cannot be predicted."""
        return profile_of_view(view_of(self._vae), self._given_profile)

    @property
    def report(self) -> DecodeReport:
        """Report of the last finished decode. `RuntimeError` before one has finished."""
        if self._report is None:
            raise RuntimeError("no decode has finished: consume all frames of one before reading its report")
        return self._report

    def plan(self, latents: Tensor, **decode_kwargs: Any) -> DecodePlan:
        """The plan for these latents (`[B, C, T, h, w]`, any device) in the memory that is free now.

        `decode_kwargs` are those of the decode: with some, a VAE cannot stream. Runs the VAE's offload hook
        first, as a decode does: weights that it moves change what is free. Raises `DoesNotFit` where no rung
        that the policy allows fits, and `UnsupportedVae` where the policy forces a strategy that this VAE
        does not support.
        """
        shape = shape_of(latents)  # raises before anything is moved
        return self.begin(**decode_kwargs).plan(shape)

    def frames(
        self, latents: Tensor, *, resume_plan: DecodePlan | None = None, **decode_kwargs: Any
    ) -> Iterator[Tensor]:
        """Decode `latents` and yield the video frames `[B, C, f, H, W]` in order, as they are finished.

        Frames are in the VAE's own range and on its device. Keep no reference to a part while asking for the
        next one, or both are in memory at the peak. A `resume_plan` is used instead of a new plan;
        `decode_kwargs` are the VAE's own. Raises as `plan` does, and `DecodeOutOfMemory` where even the
        smallest allowed chunk runs out of memory. An error that is only possibly an out-of-memory is raised
        unchanged after a few smaller attempts. No gradient is recorded: an input that requires one is refused
        with `ValueError`.
        """
        refuse_gradient("decode", latents, decode_kwargs)
        shape = shape_of(latents)  # raises before anything is moved
        decode = self.begin(**decode_kwargs)
        yield from decode.frames(latents, resume_plan or decode.plan(shape))
        self._report = decode.report

    def begin(self, **decode_kwargs: Any) -> OneDecode:
        """Look at the VAE, after its offload hook has run: what its weights take is not free for decoding."""
        run_offload_hook(self._vae)
        view = view_of(self._vae, decode_kwargs)
        costs = self._devices.costs(view.device)
        inputs = self._inputs or PlanInputs(residuals=costs.residuals)
        return OneDecode(
            view,
            self._given_profile,
            self._devices.probe(view.device),
            self._policy,
            # On the CPU an out-of-memory may make the kernel kill the process, so no plan may risk one.
            replace(inputs, may_fail=inputs.may_fail or view.device.type != "cpu"),
            costs.speeds,
            self._on_event,
            keeps_output=self._keeps_output,
            wait_for_memory=self._wait_for_memory,
        )
