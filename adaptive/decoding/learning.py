"""What one decode teaches: the margins and speeds of its device, and whether a faster way would have fitted.

Owns which decodes count. Must not know: torch, streams, how anything is measured (`adaptive.device.probe`) or
fitted (`adaptive.memory.margins`, `adaptive.memory.speed`).
"""

from adaptive.decoding.events import DecodeRun
from adaptive.memory.margins import LearnedMargins
from adaptive.memory.profile import MemoryProfile
from adaptive.memory.speed import Speeds
from adaptive.planning.planner import PlanInputs, Policy, rungs
from adaptive.planning.regret import Regret, regret_of
from adaptive.types import WHOLE_PICTURE, Cut, DecodeReport, LatentShape, MeasuredPeak


class DecodeLearning:
    """Teaches `residuals` (None: nothing about memory) and `speeds` from decodes of one VAE."""

    def __init__(self, profile: MemoryProfile, residuals: LearnedMargins | None, speeds: Speeds) -> None:
        self._profile = profile
        self._residuals = residuals
        self._speeds = speeds

    def failed(self, shape: LatentShape, cut: Cut, free_bytes: int) -> None:
        """What was free, with the state that was held, was not enough."""
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
        self, run: DecodeRun, shape: LatentShape, measured: MeasuredPeak | None, *, noise_bytes: int
    ) -> None:
        """A decode that ran as planned tells what this device needs beyond live bytes, and how fast it is.

        With fewer than `noise_bytes` live bytes it says nothing about memory. `measured` is None where
        something else was measured as well.
        """
        plan = run.plan
        undisturbed = run.smallest == plan.cut and max(run.chunk_frames) <= plan.frames_per_chunk
        if run.retries or run.spills or not (undisturbed or plan.tiles != WHOLE_PICTURE):
            return
        if plan.tiles == WHOLE_PICTURE and plan.exact and not run.watch.paused:
            self._speeds.observe(self._profile, shape, plan.frames_per_chunk, run.seconds)
        if self._residuals is None or measured is None:
            return
        if plan.predicted.live_bytes < noise_bytes:
            return
        self._residuals.observe(
            self._profile.traits.family,
            self._profile.dtype,
            plan.strategy,
            live_bytes=plan.predicted.live_bytes,
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
        """Looking back with what it was planned with."""
        plan = run.plan
        if policy.forced:
            return Regret(0.0, "none: the way was asked for")
        if run.retries or run.spills or run.smallest != plan.cut:
            return Regret(0.0, "not known: memory changed while it ran")
        ladder = rungs(self._profile, shape, plan.budget_bytes, policy, inputs)
        total = None if measured is None else measured.total_bytes
        return regret_of(plan, ladder, measured_bytes=total, seconds=run.seconds)


def report_of(run: DecodeRun, measured: MeasuredPeak | None, regret: Regret) -> DecodeReport:
    """What a decode did, once it is over."""
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
