"""Decoding in whatever memory there is: plan, decode a chunk, look again, shrink when memory runs out.

Owns: the loop around a decode stream, its events and its report. Must not know: jobs, files, how frames are
made (`adaptive.stream`) or how a rung is chosen (`adaptive.planning.planner`).
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from dataclasses import replace
from functools import partial
from typing import Any

from torch import Tensor

from adaptive.decoding.events import GROWTH_SHARE, DecodeRun, chunk_data, plan_data, replan_data, spill_data
from adaptive.decoding.events import DecodeEvent as DecodeEvent
from adaptive.decoding.learning import DecodeLearning, report_of
from adaptive.device.host import read_host
from adaptive.device.probe import MemoryProbe, is_out_of_memory, open_probe, synchronized_seconds
from adaptive.device.spill import SpillWatch
from adaptive.errors import DecodeOutOfMemory, UnsupportedVae
from adaptive.families import family_of
from adaptive.memory.margins import LearnedMargins
from adaptive.memory.profile import MemoryProfile
from adaptive.memory.profile_trace import profile_of
from adaptive.memory.speed import Speeds
from adaptive.planning.fallback import FallbackOrder
from adaptive.planning.planner import PlanInputs, Policy, budget_of, plan_decode
from adaptive.stream import BlendedTiles, DecodeStream, IndependentChunks, decode_whole, open_decode
from adaptive.stream.offload import execution_device
from adaptive.types import (
    WHOLE_PICTURE,
    Cut,
    DecodePlan,
    DecodeReport,
    LatentShape,
    MemoryReading,
    Strategy,
)

Stream = DecodeStream | IndependentChunks | BlendedTiles


class AdaptiveDecoder:
    """Decodes latents with one VAE in the memory that is free. Not for two threads at once.

    `profile` is traced from the VAE where it is not given, `probe` opened on the VAE's device.
    `keeps_output`: the caller gathers the frames on that device, which must stay free for them. Learned
    margins come from, and go into, `residuals`; times `speeds`.
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
        self._device = execution_device(vae)
        self._probe = probe or open_probe(str(self._device))
        self._policy = policy or Policy()
        self._inputs = inputs or PlanInputs(
            residuals=LearnedMargins(str(self._device)) if residuals is None else residuals
        )
        self._speeds = speeds or Speeds()
        self._lessons = DecodeLearning(self._profile, self._inputs.residuals, self._speeds)
        self._on_event = on_event
        self._keeps_output = keeps_output
        # On the CPU running out may mean that the kernel kills the process: there nobody should try.
        self._may_fail = self._inputs.may_fail or self._device.type != "cpu"
        self._planned_with = self._inputs
        self._report: DecodeReport | None = None
        self._reading: MemoryReading | None = None

    @property
    def profile(self) -> MemoryProfile:
        """Memory profile of the VAE."""
        return self._profile

    @property
    def report(self) -> DecodeReport:
        """What the last finished decode did. `RuntimeError` before one has finished."""
        if self._report is None:
            raise RuntimeError("no decode has finished")
        return self._report

    def plan(self, latents: Tensor) -> DecodePlan:
        """The plan for these latents (`[B, C, T, h, w]`, any device) in the memory that is free now.

        `DoesNotFit` where no rung that the policy allows fits; `UnsupportedVae` where it forces an impossible
        one.
        """
        self._probe.release()
        shape = _shape(latents)
        kept = self._profile.output_bytes(shape) if self._keeps_output else 0
        speed = self._inputs.speed or self._speeds.model(self._profile)
        host = self._host_budget()
        self._planned_with = replace(
            self._inputs,
            kept_output_bytes=kept,
            speed=speed,
            host_budget_bytes=host,
            may_fail=self._may_fail,
        )
        try:
            return plan_decode(self._profile, shape, self._read(), self._policy, self._planned_with)
        except UnsupportedVae as error:
            raise self._refusal or error from None

    def frames(
        self, latents: Tensor, *, resume_plan: DecodePlan | None = None, **decode_kwargs: Any
    ) -> Iterator[Tensor]:
        """Finished video frames `[B, C, f, H, W]`, in order, in the VAE's own range and on its device.

        Keep no reference to a part while asking for the next, or it takes the memory of the next.
        `resume_plan` is used instead of planning anew. `DecodeOutOfMemory` where even the smallest allowed
        chunk fails.
        """
        plan = resume_plan or self.plan(latents)
        self._tell("plan", plan_data(plan))
        usual = plan.decode_seconds and plan.decode_seconds / plan.latent_frames
        watch = SpillWatch(self._reading, usual)
        run = DecodeRun(plan, plan.cut, plan.cut, watch)
        self._probe.reset_peak()
        if plan.strategy is Strategy.BATCHED:
            whole = self._whole(latents, run, decode_kwargs)
            if whole is not None:
                self._finish(run, _shape(latents), held_bytes=whole.nbytes)
                yield whole
                return
        yield from self._chunks(latents, run, decode_kwargs)
        self._finish(run, _shape(latents))

    def _whole(self, latents: Tensor, run: DecodeRun, decode_kwargs: dict[str, Any]) -> Tensor | None:
        """The one-call decode; None where it ran out of memory and chunks are to follow."""
        whole = self._attempt(run, lambda: decode_whole(self._vae, latents, **decode_kwargs))
        if whole is None:
            self._after_failure(run, latents, held_bytes=0)
        else:
            self._note_chunk(run, whole, fed=_frames(latents), position=_frames(latents))
            self._note_spill(run, latents, self._read(), run.seconds)
        return whole

    def _chunks(self, latents: Tensor, run: DecodeRun, decode_kwargs: dict[str, Any]) -> Iterator[Tensor]:
        """Streams one after another: an exact one to the end, or to where only approximate ones go on."""
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
        """Frames of one stream, until it ends or the cut calls for another one."""
        opened, position = run.cut, stream.position
        while not stream.finished:
            seconds = run.seconds
            step = partial(stream.step, run.cut.frames_per_chunk, run.cut.tiles.rows if opened.exact else 1)
            frames = self._attempt(run, step)
            if frames is None:
                self._after_failure(run, latents, stream.state_bytes, stream.waiting_bytes)
                if run.cut.exact != opened.exact or (not opened.exact and run.cut.tiles != opened.tiles):
                    return
                continue
            self._note_chunk(run, frames, fed=stream.position - position, position=stream.position)
            position = stream.position  # a step that failed may have fed, too
            if frames.shape[2]:
                yield frames
            del frames  # or it would stay alive through the next step
            if not stream.finished and opened.exact:
                self._look_again(run, latents, stream, run.seconds - seconds)

    def _attempt(self, run: DecodeRun, work: Callable[[], Tensor]) -> Tensor | None:
        """The result, or None after an out-of-memory.

        What follows a failure runs outside the `except` block: inside, the exception's traceback keeps the
        failed decode's tensors alive.
        """
        started = synchronized_seconds(self._device)
        try:
            return work()
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            run.failure = str(error)[:200]
        finally:
            run.seconds += synchronized_seconds(self._device) - started
        return None

    def _after_failure(
        self, run: DecodeRun, latents: Tensor, held_bytes: int, waiting_bytes: int = 0
    ) -> None:
        """Choose a smaller cut after an out-of-memory. Where there is none, a larger one that was not tried
        here and is expected to fit: libraries may need more for few frames than for some. Else the smallest
        gets a second try at each chunk: a neighbour may have come and gone. Then come the larger ones,
        fitting or not. `DecodeOutOfMemory` where they fail, too.

        `held_bytes` are the state that the decode keeps, `waiting_bytes` those of it that no prediction
        counts.
        """
        run.retries += 1
        self._probe.release()
        reading = self._read()
        failed = run.cut
        again = failed in run.failed_here
        run.failed[failed] = reading.free_bytes
        run.failed_here.add(failed)
        self._lessons.failed(_shape(latents), failed, reading.free_bytes + held_bytes)
        data = {"frames_per_chunk": failed.frames_per_chunk, "free_bytes": reading.free_bytes}
        self._tell("oom", {**data, "message": run.failure})
        ladder, counted_bytes = self._ladder(latents), held_bytes - waiting_bytes
        after = ladder.next_cut(failed, run.may_follow, reading, counted_bytes)
        room_bytes = None if again else budget_of(reading, self._policy, counted_bytes)
        if after is not None:
            run.go_on_with(after)
            self._tell_replan(run, failed, "out_of_memory", reading)
            names = [cut.strategy(_frames(latents)).value for cut in (failed, after)]
            if names[0] != names[1]:
                self._tell("fallback", {"from": names[0], "to": names[1]})
        elif larger := ladder.smallest_untried(run.failed_here, room_bytes):
            run.go_on_with(larger)
            self._tell_replan(run, failed, "out_of_memory", reading)
        elif again:
            smallest = run.smallest.frames_per_chunk
            raise DecodeOutOfMemory(
                frames_per_chunk=smallest, retries=run.retries, frames_done=run.video_frames
            )

    def _note_spill(self, run: DecodeRun, latents: Tensor, reading: MemoryReading, seconds: float) -> bool:
        """Whether the last chunk overflowed into host memory: then the next one is smaller, where it may be.

        To the learned margins a spill is what an out-of-memory is: what was free was not enough.
        """
        found = run.watch.after_chunk(reading, seconds, run.cut.frames_per_chunk)
        if found is None:
            return False
        sign, free_bytes = found
        spilled, done = run.cut, run.video_frames == self._video_frames(latents)
        run.spills += 1
        run.failed[spilled] = reading.free_bytes
        self._lessons.failed(_shape(latents), spilled, free_bytes)
        below = [] if done else [cut for cut in self._ladder(latents).cuts_after(spilled) if cut.exact]
        if below:
            self._probe.release()
            run.go_on_with(below[0])
        sizes = spilled.frames_per_chunk, run.cut.frames_per_chunk
        self._tell("spill", spill_data(sign, *sizes, reading, seconds))
        return True

    def _video_frames(self, latents: Tensor) -> int:
        return family_of(self._vae).video_frames(self._profile.traits, _frames(latents))

    def _ladder(self, latents: Tensor) -> FallbackOrder:
        host = self._host_budget()
        inputs = replace(self._inputs, host_budget_bytes=host, may_fail=self._may_fail)
        return FallbackOrder(self._profile, _shape(latents), self._policy, inputs)

    def _host_budget(self) -> int | None:
        """What a sweep may park in host memory; None where it is the device's own, or nothing is parked."""
        if self._profile.sweep is None or self._device.type == "cpu":
            return None
        return read_host().free_bytes

    def _look_again(self, run: DecodeRun, latents: Tensor, stream: Stream, seconds: float) -> None:
        """Fit the next chunk to the memory that is free now; `seconds` were spent on the one before."""
        reading = self._read()
        if self._note_spill(run, latents, reading, seconds) or self._policy.forced:
            return
        ladder, now = self._ladder(latents), run.cut
        held = stream.state_bytes - stream.waiting_bytes
        fits = ladder.fastest_that_fits(reading, held, at_most=now)
        if fits is None or fits.order > now.order:
            run.go_on_with(fits or ladder.smallest())  # a bound that is too careful must not end a decode
            reason = "memory_fell"
        else:
            roomy = replace(reading, free_bytes=round(reading.free_bytes * GROWTH_SHARE))
            failed = run.failed_lately(reading.free_bytes)
            most = ladder.cuts_after(failed)[:1] if failed else [Cut(max(1, _frames(latents) - 1))]
            larger = ladder.fastest_that_fits(roomy, held, at_most=most[0]) if most else None
            if larger is not None and larger.order < now.order:
                run.go_on_with(larger)
            reason = "memory_rose"
        self._tell_replan(run, now, reason, reading)

    def _read(self) -> MemoryReading:
        """Free memory; weights that an offload hook is about to bring in are counted as taken already."""
        reading = self._probe.read()
        coming = sum(
            parameter.nbytes
            for parameter in self._vae.parameters()
            if parameter.device.type == "cpu" and self._device.type != "cpu"
        )
        if coming:
            reading = replace(reading, free_bytes=max(0, reading.free_bytes - coming))
        self._reading = reading
        return reading

    def _note_chunk(self, run: DecodeRun, frames: Tensor, *, fed: int, position: int) -> None:
        run.chunk_done(fed, frames.shape[2])
        self._tell("chunk", chunk_data(run, fed, position, frames.shape[2]))

    def _tell_replan(self, run: DecodeRun, before: Cut, reason: str, reading: MemoryReading) -> None:
        if run.cut != before:
            self._tell("replan", replan_data(before, run.cut, reason, reading))

    def _tell(self, kind: str, data: Mapping[str, Any]) -> None:
        if self._on_event is not None:
            self._on_event(DecodeEvent(kind, data))

    def _finish(self, run: DecodeRun, shape: LatentShape, *, held_bytes: int = 0) -> None:
        measured = self._probe.peak(held_bytes)
        regret = self._lessons.regret(run, shape, measured, self._policy, self._planned_with)
        alone = None if self._keeps_output else measured
        self._lessons.finished(run, shape, alone, noise_bytes=self._probe.noise_bytes)
        self._report = report_of(run, measured, regret)


def _frames(latents: Tensor) -> int:
    """Latent frames of `[B, C, T, h, w]`."""
    return latents.shape[2]


def _refusal(vae: Any) -> UnsupportedVae | None:
    """Why this very VAE cannot be streamed, if it cannot: its layers may be compiled, or replaced."""
    try:
        family_of(vae).decode_engine(vae, {})
    except UnsupportedVae as error:
        return error
    return None


def _shape(latents: Tensor) -> LatentShape:
    if latents.dim() != 5:
        raise ValueError(f"latents must be [B, C, T, h, w], got {tuple(latents.shape)}")
    return LatentShape(*latents.shape)
