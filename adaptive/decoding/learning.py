"""Learns from one decode: the margins and speeds of its device, and whether a faster rung would have fitted.

Owns which decodes count. It does not know torch, streams, or how costs are measured (`adaptive.device.probe`)
and fitted (`adaptive.memory.margins`, `adaptive.memory.speed`).
"""

from dataclasses import replace

from adaptive.decoding.events import DecodeRun
from adaptive.memory.margins import LearnedMargins
from adaptive.memory.profile import MemoryProfile
from adaptive.memory.speed import Speeds
from adaptive.planning.planner import PlanInputs, Policy, fastest_if_it_fits, rungs
from adaptive.planning.regret import Regret, regret_of
from adaptive.types import WHOLE_PICTURE, Cut, DecodeReport, LatentShape, MeasuredPeak


class DecodeLearning:
    """Adds what decodes of one VAE show to `residuals` (None: memory is not learned) and `speeds`."""

    def __init__(self, profile: MemoryProfile, residuals: LearnedMargins | None, speeds: Speeds) -> None:
        self._profile = profile
        self._residuals = residuals
        self._speeds = speeds

    def failed(self, shape: LatentShape, cut: Cut, free_bytes: int) -> None:
        """Learn that `cut` ran out of memory with `free_bytes`, the decode's own state included."""
        if self._residuals is not None:
            self._residuals.out_of_memory(
                self._profile.traits.family,
                self._profile.dtype,
                cut.strategy(shape.frames),
                live_bytes=self._profile.cut_bytes(shape, cut, on_host=self._residuals.on_host),
                free_bytes=free_bytes,
                chunking=cut.chunking(shape.frames),
            )

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
        if self._residuals is None or measured is None:
            return
        live_bytes = plan.predicted.live_bytes - kept_bytes
        if live_bytes < max(1, noise_bytes):
            return
        measured = replace(measured, allocated_bytes=max(0, measured.allocated_bytes - kept_bytes))
        self._residuals.observe(
            self._profile.traits.family,
            self._profile.dtype,
            plan.strategy,
            live_bytes=live_bytes,
            measured=measured,
            chunking=plan.cut.chunking(shape.frames),
        )

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
