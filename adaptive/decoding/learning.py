"""Learns from one decode or encode: margins and speeds, and whether a faster rung would have fitted.

Owns which decodes count. It does not know torch, streams, or how costs are measured (`adaptive.device.probe`)
and fitted (`adaptive.memory.margins`, `adaptive.memory.speed`).
"""

from dataclasses import dataclass, replace

from adaptive.decoding.events import DecodeRun
from adaptive.memory.margins import LearnedMargins
from adaptive.memory.profile import MemoryProfile
from adaptive.memory.speed import Speeds
from adaptive.planning.planner import PlanInputs, Policy, fastest_if_it_fits, rungs
from adaptive.planning.regret import Regret, regret_of
from adaptive.types import (
    WHOLE_PICTURE,
    Chunking,
    Cut,
    DecodeReport,
    LatentShape,
    MeasuredPeak,
    Strategy,
)


@dataclass(frozen=True, slots=True)
class MemoryUse:
    """A way to decode or encode, as margins know it, and the bytes of its tensors."""

    strategy: Strategy
    chunking: Chunking | None
    live_bytes: int


class MarginLearning:
    """Learns from what one kind of call takes.

    `family` and `dtype` say which calls are alike. With `residuals` of None nothing is learned.
    """

    def __init__(self, residuals: LearnedMargins | None, family: str, dtype: str) -> None:
        self._residuals = residuals
        self._alike = family, dtype

    def failed(self, use: MemoryUse, free_bytes: int) -> None:
        """Learn that a call ran out of memory with `free_bytes`, its own state included."""
        if self._residuals is not None:
            self._residuals.out_of_memory(
                *self._alike,
                use.strategy,
                live_bytes=use.live_bytes,
                free_bytes=free_bytes,
                chunking=use.chunking,
            )

    def finished(self, use: MemoryUse, measured: MeasuredPeak | None, *, noise_bytes: int) -> None:
        """Learn from a call that ran as planned; `measured` is None where its peak is not known.

        A call with fewer than `noise_bytes` live bytes teaches nothing.
        """
        if self._residuals is None or measured is None or use.live_bytes < max(1, noise_bytes):
            return
        if not measured.complete:  # fewer bytes than were needed would be learned
            return
        self._residuals.observe(
            *self._alike,
            use.strategy,
            live_bytes=use.live_bytes,
            measured=measured,
            chunking=use.chunking,
        )


class DecodeLearning:
    """Adds what decodes of one VAE show to `residuals` (None: memory is not learned) and `speeds`."""

    def __init__(self, profile: MemoryProfile, residuals: LearnedMargins | None, speeds: Speeds) -> None:
        self._profile = profile
        self._residuals = residuals
        self._margins = MarginLearning(residuals, profile.traits.family, profile.dtype)
        self._speeds = speeds

    def failed(self, shape: LatentShape, cut: Cut, free_bytes: int) -> None:
        """Learn that `cut` ran out of memory with `free_bytes`, the decode's own state included."""
        if self._residuals is None:
            return
        live_bytes = self._profile.cut_bytes(shape, cut, on_host=self._residuals.on_host)
        use = MemoryUse(cut.strategy(shape.frames), cut.chunking(shape.frames), live_bytes)
        self._margins.failed(use, free_bytes)

    def finished(
        self,
        run: DecodeRun,
        shape: LatentShape,
        measured: MeasuredPeak | None,
        *,
        noise_bytes: int,
        kept_bytes: int = 0,
    ) -> None:
        """Learn memory and time from a decode that ran as planned; others only confirm doubtful failures.

        `measured` is None where the peak was not measured or includes other memory. `kept_bytes` of it, and
        of the prediction, are the caller's video. A decode with fewer than `noise_bytes` live bytes teaches
        nothing about memory.
        """
        for cut, free_bytes in run.suspected:  # smaller cuts succeeded, so memory was the cause
            self.failed(shape, cut, free_bytes)
        plan = run.plan
        undisturbed = run.smallest == plan.cut and max(run.chunk_frames) <= plan.frames_per_chunk
        if run.retries or run.spills or not (undisturbed or plan.tiles != WHOLE_PICTURE):
            return
        if plan.tiles == WHOLE_PICTURE and plan.exact and not run.watch.time_unreliable:
            self._speeds.observe(self._profile, shape, plan.frames_per_chunk, run.seconds)
        if measured is not None:
            measured = replace(measured, allocated_bytes=max(0, measured.allocated_bytes - kept_bytes))
        live_bytes = plan.predicted.live_bytes - kept_bytes
        use = MemoryUse(plan.strategy, plan.cut.chunking(shape.frames), live_bytes)
        self._margins.finished(use, measured, noise_bytes=noise_bytes)

    def regret(
        self,
        run: DecodeRun,
        shape: LatentShape,
        measured: MeasuredPeak | None,
        policy: Policy,
        inputs: PlanInputs,
    ) -> Regret:
        """Regret of the decode, computed with the policy and inputs that it was planned with."""
        plan = run.plan
        if policy.forced:
            return Regret(0.0, "none: the strategy was requested")
        if run.retries or run.spills or run.smallest != plan.cut:
            return Regret(0.0, "not known: the free memory changed during the decode")
        fastest = fastest_if_it_fits(self._profile, shape, plan.budget_bytes, policy, inputs)
        # The bytes of slower rungs may not be traced yet.
        ladder = (fastest,) if fastest else rungs(self._profile, shape, plan.budget_bytes, policy, inputs)
        total = None if measured is None else measured.total_bytes
        return regret_of(plan, ladder, measured_bytes=total, seconds=run.seconds)


def report_of(run: DecodeRun, measured: MeasuredPeak | None, regret: Regret) -> DecodeReport:
    """Report of a finished decode."""
    return DecodeReport(
        plan=run.plan,
        chunk_frames=tuple(run.chunk_frames),
        frames_per_chunk=run.smallest.frames_per_chunk,
        video_frames=run.video_frames,
        exact=run.exact,
        predicted_peak_bytes=run.plan.predicted.expected_bytes,
        measured_peak_bytes=None if measured is None else measured.total_bytes,
        seconds=run.seconds,
        retries=run.retries,
        spills=run.spills,
        tiles=run.smallest.tiles,
        seam_score=run.seam_score,
        regret_seconds=regret.seconds,
        regret_detail=regret.detail,
    )
