"""One decode: what the VAE is at its beginning, its plan, and the loop around its stream.

Plans, decodes a chunk, reads memory again, and adapts the next chunk. Owns the loop, its events and its
report. It does not know jobs, files, how frames are made (`adaptive.stream`), how a rung is chosen
(`adaptive.planning.planner`), or how the next cut is chosen (`adaptive.decoding.replanning`).
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from adaptive.decoding.events import DecodeEvent, DecodeRun, chunk_data, plan_data
from adaptive.decoding.learning import DecodeLearning, report_of
from adaptive.decoding.overlaps import Overlap, noting_overlaps
from adaptive.decoding.replanning import DecodeMemory, Replanner
from adaptive.device.accelerator import Stopwatch
from adaptive.device.out_of_memory import MemoryFailure, memory_failure, release_frames
from adaptive.device.probe import MemoryProbe
from adaptive.device.spill import SpillWatch
from adaptive.errors import UnsupportedVae
from adaptive.memory.profile import ITEM_BYTES, Curve, MemoryProfile
from adaptive.memory.profile_trace import profile_of
from adaptive.memory.speed import Speeds
from adaptive.planning.planner import (
    UNPREDICTED,
    PlanInputs,
    Policy,
    least_plan,
    plan_decode,
    unpredicted_plan,
)
from adaptive.planning.regret import Regret
from adaptive.stream import BlendedTiles, DecodeStream, IndependentChunks, VaeView, decode_whole, open_decode
from adaptive.stream.finite import check_finite
from adaptive.types import WHOLE_PICTURE, DecodePlan, DecodeReport, LatentShape, Strategy

Stream = DecodeStream | IndependentChunks | BlendedTiles

_BEST = ("fastest", "only_strategy", "requested")  # reasons of plans that more free memory would not change


class OneDecode:
    """The planner and the stream get the same `view`, so what is planned is what runs.

    `profile` is the view's own if it is None. For the other arguments see `AdaptiveDecoder`.
    """

    report: DecodeReport  # once all frames are consumed

    def __init__(
        self,
        view: VaeView,
        profile: MemoryProfile | None,
        probe: MemoryProbe,
        policy: Policy,
        inputs: PlanInputs,
        speeds: Speeds,
        on_event: Callable[[DecodeEvent], None] | None,
        *,
        keeps_output: bool,
        wait_for_memory: Callable[[int], bool] | None = None,
    ) -> None:
        self._view = view
        self._probe = probe
        self._policy = policy
        self._inputs = self._planned_with = inputs
        self._speeds = speeds
        self._on_event = on_event
        self._keeps_output = keeps_output
        self._overlap = Overlap()
        self._unpredicted: UnsupportedVae | None = None
        try:
            self._profile = profile_of_view(view, profile)
        except UnsupportedVae as error:
            nothing = Curve((1,), (0.0,))
            self._profile = MemoryProfile(view.traits, next(iter(ITEM_BYTES)), "", nothing, {})
            self._unpredicted = error
        self._learning = DecodeLearning(self._profile, inputs.residuals, speeds)
        parks = self._profile.sweep is not None
        self._memory = DecodeMemory(view, probe, parks_activations=parks)
        self._replanner = Replanner(
            self._profile, policy, inputs, self._memory, self._learning, self._emit, wait_for_memory
        )

    @property
    def device(self) -> torch.device:
        """Where the VAE computes."""
        return self._view.device

    def plan(self, shape: LatentShape) -> DecodePlan:
        """See `AdaptiveDecoder.plan`."""
        return self._memory.planned(lambda: self._plan(shape), lambda plan: plan.reason in _BEST)

    def _plan(self, shape: LatentShape) -> DecodePlan:
        reading = self._memory.read()
        self._planned_with = replace(
            self._inputs,
            kept_output_bytes=self._kept_bytes(shape),
            speed=self._inputs.speed or self._speeds.model(self._profile),
            host_budget_bytes=self._memory.host_budget_bytes(),
        )
        try:
            if self._unpredicted is not None:
                raise self._unpredicted
            return plan_decode(self._profile, shape, reading, self._policy, self._planned_with)
        except UnsupportedVae as error:
            if self._policy.forced and self._policy.strategy != Strategy.BATCHED:
                raise self._view.refusal or error from None
            return unpredicted_plan(shape.frames, reading, self._policy, str(error))

    def least_plan(self, shape: LatentShape) -> DecodePlan:
        """The exact rung that needs least, after `plan` has raised `DoesNotFit`."""
        reading = self._memory.read()
        return least_plan(self._profile, shape, reading, self._policy, self._planned_with)

    def frames(self, latents: Tensor, plan: DecodePlan) -> Iterator[Tensor]:
        """See `AdaptiveDecoder.frames`."""
        shape = shape_of(latents)
        self._emit("plan", plan_data(plan))
        self._memory.decode_begins()
        usual = plan.decode_seconds and plan.decode_seconds / plan.latent_frames
        watch = SpillWatch(self._memory.last_reading, usual)
        total = self._view.video_frames(shape.frames)
        run = DecodeRun(plan, plan.cut, plan.cut, watch, total_video_frames=total)
        with noting_overlaps() as self._overlap:
            self._probe.reset_peak()
            yield from self._decoded(latents, run, shape)

    def _decoded(self, latents: Tensor, run: DecodeRun, shape: LatentShape) -> Iterator[Tensor]:
        plan = run.plan
        if plan.predicted == UNPREDICTED:
            yield from self._own_call(latents, run)
            return
        if plan.strategy is Strategy.BATCHED:
            whole = self._whole(latents, run)
            if whole is not None:
                self._finish(run, shape, whole)
                yield whole
                return
        yield from self._chunks(latents, run)
        self._finish(run, shape)

    def _kept_bytes(self, shape: LatentShape) -> int:
        return self._profile.output_bytes(shape) if self._keeps_output else 0

    def _whole(self, latents: Tensor, run: DecodeRun) -> Tensor | None:
        """The one-call decode; None where it ran out of memory and the replanner chose another cut."""
        shape = shape_of(latents)
        whole = self._attempt(run, lambda: decode_whole(self._view, latents))
        if whole is None:
            self._replanner.after_failure(run, shape, held_bytes=0)
        else:
            self._note_chunk(run, whole, fed=shape.frames, position=shape.frames)
            self._replanner.note_spill(run, shape, self._memory.read(), run.seconds)
        return whole

    def _own_call(self, latents: Tensor, run: DecodeRun) -> Iterator[Tensor]:
        """One call whose memory is not known: an out-of-memory is torch's own error."""
        watch = Stopwatch(self._view.device)
        whole = decode_whole(self._view, latents)
        run.seconds = watch.seconds()
        self._note_chunk(run, whole, fed=latents.shape[2], position=latents.shape[2])
        self.report = report_of(run, self._probe.peak(whole.nbytes), Regret(0.0, "not known"))
        yield whole

    def _chunks(self, latents: Tensor, run: DecodeRun) -> Iterator[Tensor]:
        """Frames of an exact stream, continued by approximate streams where no exact cut is left."""
        finished = False
        while not finished:
            with closing(self._open_stream(latents, run)) as stream:
                yield from self._steps(latents, run, stream)
                finished = stream.finished
                if not run.cut.exact and finished:
                    run.seam_score = getattr(stream, "seam_score", None)

    def _open_stream(self, latents: Tensor, run: DecodeRun) -> Stream:
        if run.cut.exact:
            if run.cut.tiles != WHOLE_PICTURE:
                self._view.check_strips()
            return open_decode(self._view, latents)
        run.exact = False
        if run.cut.tiles == WHOLE_PICTURE:
            return IndependentChunks(self._view, latents)
        return BlendedTiles(self._view, latents, run.cut.tiles, done=run.video_frames)

    def _steps(self, latents: Tensor, run: DecodeRun, stream: Stream) -> Iterator[Tensor]:
        """Frames of one stream, until it ends or the next cut needs another kind of stream."""
        shape, opened, position = shape_of(latents), run.cut, stream.position
        while not stream.finished:
            seconds = run.seconds
            step = partial(stream.step, run.cut.frames_per_chunk, run.cut.tiles.rows if opened.exact else 1)
            frames = self._attempt(run, step)
            if frames is None:
                self._replanner.after_failure(run, shape, stream.state_bytes, stream.waiting_bytes)
                if run.cut.exact != opened.exact or (not opened.exact and run.cut.tiles != opened.tiles):
                    return
                continue
            self._note_chunk(run, frames, fed=stream.position - position, position=stream.position)
            position = stream.position  # a failed step may have fed frames as well
            if frames.shape[2]:
                yield frames
            del frames  # or it would stay alive through the next step
            if not stream.finished and opened.exact:
                held_bytes = stream.state_bytes - stream.waiting_bytes
                left = shape.frames - position
                self._replanner.after_chunk(run, shape, held_bytes, run.seconds - seconds, frames_left=left)

    def _attempt(self, run: DecodeRun, work: Callable[[], Tensor]) -> Tensor | None:
        """The result of `work`, or None after an out-of-memory, or after an error that may be one.

        The caller reacts to the failure outside the `except` block, because the exception's traceback keeps
        the tensors of the failed decode alive.
        """
        watch = Stopwatch(self._view.device)
        try:
            return work()
        except Exception as error:
            failure = memory_failure(error)
            if failure is None:
                raise
            run.failure = str(error)[:200]
            run.doubtful = error if failure is MemoryFailure.POSSIBLE else None
            release_frames(error)
        finally:
            run.seconds += watch.seconds()
        return None

    def _note_chunk(self, run: DecodeRun, frames: Tensor, *, fed: int, position: int) -> None:
        if self._policy.require_finite:
            last = run.video_frames + frames.shape[2]
            check_finite(frames, "decoding", f"the decoded frames {run.video_frames + 1} to {last}")
        run.chunk_done(fed, frames.shape[2])
        self._emit("chunk", chunk_data(run, fed, position, frames.shape[2]))

    def _emit(self, kind: str, data: Mapping[str, Any]) -> None:
        if self._on_event is not None:
            self._on_event(DecodeEvent(kind, data))

    def _finish(self, run: DecodeRun, shape: LatentShape, whole: Tensor | None = None) -> None:
        """Report and learn. `whole` is the result of one call, which the prediction includes."""
        kept_bytes = 0 if whole is not None else self._kept_bytes(shape)
        measured = self._probe.peak(kept_bytes if whole is None else whole.nbytes)
        regret = self._learning.regret(run, shape, measured, self._policy, self._planned_with)
        # What the decode alone took is not known beside another one, and of a layer sweep, whose peak comes
        # before the caller's video is there.
        known = self._overlap.alone and (not kept_bytes or self._profile.sweep is None)
        self._learning.finished(
            run,
            shape,
            measured if known else None,
            noise_bytes=self._probe.noise_bytes,
            kept_bytes=kept_bytes,
        )
        self.report = report_of(run, measured, regret)


def profile_of_view(view: VaeView, profile: MemoryProfile | None = None) -> MemoryProfile:
    """`profile`, by default that of the VAE, without what the view's engine cannot do.

    Raises `UnsupportedVae` where the memory of this VAE, or of its dtype, cannot be predicted.
    """
    name = str(view.dtype).removeprefix("torch.")
    if profile is None and name not in ITEM_BYTES:
        raise UnsupportedVae(type(view.vae).__name__, f"predicting its memory in {name}")
    found = profile or profile_of(view.vae, view.dtype)
    if view.refusal is not None:
        return replace(found, streamed={}, tiled=None, sweep=None)
    if found.tiled is not None and not view.has_strips:  # hooks may be on layers that strips compute
        return replace(found, tiled=None)
    return found


def shape_of(latents: Tensor) -> LatentShape:
    """Shape of `[B, C, T, h, w]`; `ValueError` for any other number of dimensions."""
    if latents.dim() != 5:
        raise ValueError(f"latents must be [B, C, T, h, w], got {tuple(latents.shape)}")
    return LatentShape(*latents.shape)
