"""Decodes in the memory that is free: plans, decodes a chunk, reads memory again, and adapts the next chunk.

Owns the loop around a decode stream, its events and its report. It does not know jobs, files, how frames are
made (`adaptive.stream`), how a rung is chosen (`adaptive.planning.planner`), or how the next cut is chosen
(`adaptive.decoding.replanning`).
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from dataclasses import replace
from functools import partial
from typing import Any

from torch import Tensor

from adaptive.decoding.events import DecodeEvent as DecodeEvent
from adaptive.decoding.events import DecodeRun, chunk_data, plan_data
from adaptive.decoding.learning import DecodeLearning, report_of
from adaptive.decoding.replanning import DecodeMemory, Replanner
from adaptive.device.out_of_memory import MemoryFailure, memory_failure, release_frames
from adaptive.device.probe import MemoryProbe, open_probe, synchronized_seconds
from adaptive.device.spill import SpillWatch
from adaptive.errors import UnsupportedVae
from adaptive.families import family_of
from adaptive.memory.margins import LearnedMargins
from adaptive.memory.profile import MemoryProfile
from adaptive.memory.profile_trace import profile_of
from adaptive.memory.speed import Speeds
from adaptive.planning.planner import PlanInputs, Policy, plan_decode
from adaptive.stream import BlendedTiles, DecodeStream, IndependentChunks, decode_whole, open_decode
from adaptive.stream.inputs import refuse_gradient
from adaptive.stream.offload import execution_device
from adaptive.types import WHOLE_PICTURE, DecodePlan, DecodeReport, LatentShape, Strategy

Stream = DecodeStream | IndependentChunks | BlendedTiles


class AdaptiveDecoder:
    """Decodes latents with one VAE in the memory that is free. Not thread-safe.

    By default `profile` is traced from the VAE, and `probe` reads the VAE's device. `residuals` holds the
    learned margins and `speeds` the timings; the decoder predicts with both and adds to them. `on_event`
    receives each event as it happens. `inputs`, if given, are the planner's inputs and hold the residuals
    instead. `keeps_output`: the caller gathers all frames on the device, so the plan leaves room for them.
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
    ) -> None:
        self._vae = vae
        self._profile = profile or profile_of(vae)
        self._refusal = _refusal(vae)
        if self._refusal is not None:
            self._profile = replace(self._profile, streamed={}, tiled=None, sweep=None)
        elif self._profile.tiled is not None and family_of(vae).strip_halo(vae) is None:
            self._profile = replace(self._profile, tiled=None)  # hooks on layers that strips compute
        self._device = execution_device(vae)
        self._probe = probe or open_probe(str(self._device))
        self._policy = policy or Policy()
        inputs = inputs or PlanInputs(
            residuals=LearnedMargins(str(self._device)) if residuals is None else residuals
        )
        # On the CPU an out-of-memory may make the kernel kill the process, so no plan there may risk one.
        self._inputs = replace(inputs, may_fail=inputs.may_fail or self._device.type != "cpu")
        self._speeds = speeds or Speeds()
        self._learning = DecodeLearning(self._profile, self._inputs.residuals, self._speeds)
        self._on_event = on_event
        self._keeps_output = keeps_output
        self._memory = DecodeMemory(vae, self._profile, self._probe)
        self._replanner = Replanner(
            self._profile, self._policy, self._inputs, self._memory, self._learning, self._emit
        )
        self._planned_with = self._inputs
        self._report: DecodeReport | None = None

    @property
    def profile(self) -> MemoryProfile:
        """Memory profile of the VAE."""
        return self._profile

    @property
    def report(self) -> DecodeReport:
        """Report of the last finished decode. `RuntimeError` before one has finished."""
        if self._report is None:
            raise RuntimeError("no decode has finished: consume all frames of one before reading its report")
        return self._report

    def plan(self, latents: Tensor) -> DecodePlan:
        """The plan for these latents (`[B, C, T, h, w]`, any device) in the memory that is free now.

        Raises `DoesNotFit` where no rung that the policy allows fits, and `UnsupportedVae` where the policy
        forces a strategy that this VAE does not support.
        """
        self._probe.release()
        shape = _shape(latents)
        kept = self._profile.output_bytes(shape) if self._keeps_output else 0
        speed = self._inputs.speed or self._speeds.model(self._profile)
        host = self._memory.host_budget_bytes()
        self._planned_with = replace(
            self._inputs, kept_output_bytes=kept, speed=speed, host_budget_bytes=host
        )
        try:
            return plan_decode(self._profile, shape, self._memory.read(), self._policy, self._planned_with)
        except UnsupportedVae as error:
            raise self._refusal or error from None

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
        plan = resume_plan or self.plan(latents)
        shape = _shape(latents)
        self._emit("plan", plan_data(plan))
        usual = plan.decode_seconds and plan.decode_seconds / plan.latent_frames
        watch = SpillWatch(self._memory.last_reading, usual)
        total = family_of(self._vae).video_frames(self._profile.traits, shape.frames)
        run = DecodeRun(plan, plan.cut, plan.cut, watch, total_video_frames=total)
        self._probe.reset_peak()
        if plan.strategy is Strategy.BATCHED:
            whole = self._whole(latents, run, decode_kwargs)
            if whole is not None:
                self._finish(run, shape, held_bytes=whole.nbytes)
                yield whole
                return
        yield from self._chunks(latents, run, decode_kwargs)
        self._finish(run, shape)

    def _whole(self, latents: Tensor, run: DecodeRun, decode_kwargs: dict[str, Any]) -> Tensor | None:
        """The one-call decode; None where it ran out of memory and the replanner chose another cut."""
        shape = _shape(latents)
        whole = self._attempt(run, lambda: decode_whole(self._vae, latents, **decode_kwargs))
        if whole is None:
            self._replanner.after_failure(run, shape, held_bytes=0)
        else:
            self._note_chunk(run, whole, fed=shape.frames, position=shape.frames)
            self._replanner.note_spill(run, shape, self._memory.read(), run.seconds)
        return whole

    def _chunks(self, latents: Tensor, run: DecodeRun, decode_kwargs: dict[str, Any]) -> Iterator[Tensor]:
        """Frames of an exact stream, continued by approximate streams where no exact cut is left."""
        finished = False
        while not finished:
            with closing(self._open(latents, run, decode_kwargs)) as stream:
                yield from self._steps(latents, run, stream)
                finished = stream.finished
                if not run.cut.exact and finished:
                    run.seam_score = getattr(stream, "seam_score", None)

    def _open(self, latents: Tensor, run: DecodeRun, decode_kwargs: dict[str, Any]) -> Stream:
        if run.cut.exact:
            return open_decode(self._vae, latents, **decode_kwargs)
        run.exact = False
        if run.cut.tiles == WHOLE_PICTURE:
            return IndependentChunks(self._vae, latents, **decode_kwargs)
        return BlendedTiles(self._vae, latents, run.cut.tiles, done=run.video_frames, **decode_kwargs)

    def _steps(self, latents: Tensor, run: DecodeRun, stream: Stream) -> Iterator[Tensor]:
        """Frames of one stream, until it ends or the next cut needs another kind of stream."""
        shape, opened, position = _shape(latents), run.cut, stream.position
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
                self._replanner.after_chunk(run, shape, held_bytes, run.seconds - seconds)

    def _attempt(self, run: DecodeRun, work: Callable[[], Tensor]) -> Tensor | None:
        """The result of `work`, or None after an out-of-memory, or after an error that may be one.

        The caller reacts to the failure outside the `except` block, because the exception's traceback keeps
        the tensors of the failed decode alive.
        """
        started = synchronized_seconds(self._device)
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
            run.seconds += synchronized_seconds(self._device) - started
        return None

    def _note_chunk(self, run: DecodeRun, frames: Tensor, *, fed: int, position: int) -> None:
        run.chunk_done(fed, frames.shape[2])
        self._emit("chunk", chunk_data(run, fed, position, frames.shape[2]))

    def _emit(self, kind: str, data: Mapping[str, Any]) -> None:
        if self._on_event is not None:
            self._on_event(DecodeEvent(kind, data))

    def _finish(self, run: DecodeRun, shape: LatentShape, *, held_bytes: int = 0) -> None:
        measured = self._probe.peak(held_bytes)
        regret = self._learning.regret(run, shape, measured, self._policy, self._planned_with)
        # With the caller's frames on the device, the measured peak is not the decode's alone.
        learned_from = None if self._keeps_output else measured
        self._learning.finished(run, shape, learned_from, noise_bytes=self._probe.noise_bytes)
        self._report = report_of(run, measured, regret)


def _refusal(vae: Any) -> UnsupportedVae | None:
    """The error that streaming this VAE raises (its layers may be compiled or replaced), or None."""
    try:
        family_of(vae).decode_engine(vae, {})
    except UnsupportedVae as error:
        return error
    return None


def _shape(latents: Tensor) -> LatentShape:
    if latents.dim() != 5:
        raise ValueError(f"latents must be [B, C, T, h, w], got {tuple(latents.shape)}")
    return LatentShape(*latents.shape)
