"""Reacts to changes of memory during a decode: after a failure, after a spill, and between chunks.

Owns when a running decode changes its cut, and the events about it. It does not know streams, how frames are
made, or how a cut is chosen (see `adaptive.planning.fallback`).
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, TypeVar

from adaptive.decoding.events import GROWTH_SHARE, DecodeRun, replan_data, spill_data
from adaptive.decoding.learning import DecodeLearning
from adaptive.device.host import read_host
from adaptive.device.probe import MemoryProbe
from adaptive.errors import DecodeOutOfMemory, DoesNotFit
from adaptive.memory.profile import MemoryProfile
from adaptive.planning.fallback import FallbackOrder
from adaptive.planning.planner import PlanInputs, Policy, budget_of
from adaptive.stream import VaeView
from adaptive.types import Cut, LatentShape, MemoryReading

Plan = TypeVar("Plan")

# Failures in a row that may have another cause than memory, before their error is raised. Before the last
# attempt the smallest cut is chosen, so that a real out-of-memory has had every chance.
MOST_DOUBTFUL_FAILURES = 4


class DecodeMemory:
    """Readings of the memory that one decode or encode can use."""

    def __init__(self, view: VaeView, probe: MemoryProbe, *, parks_activations: bool) -> None:
        self.probe = probe
        self.last_reading: MemoryReading | None = None
        self._split_before: int | None = None
        self._vae = view.vae
        self._device = view.device
        self._parks_activations = parks_activations

    def read(self) -> MemoryReading:
        """Free memory. Weights that an offload hook is about to load count as used already."""
        reading = self.probe.read()
        arriving_bytes = sum(
            parameter.nbytes
            for parameter in self._vae.parameters()
            if parameter.device.type == "cpu" and self._device.type != "cpu"
        )
        if arriving_bytes:
            reading = replace(reading, free_bytes=max(0, reading.free_bytes - arriving_bytes))
        self.last_reading = reading
        return reading

    def decode_begins(self) -> None:
        """Note the memory at the beginning, for `read_between_chunks`."""
        before = self.last_reading or self.read()
        self._split_before = before.split_bytes

    def read_between_chunks(self) -> MemoryReading:
        """Free memory for the next chunk. The unused parts of blocks that this decode has split count as
        free.

        The next chunk has tensors of the same sizes, which they serve; without them, a quarter to a half of
        what the plan counted on would seem to be gone after the first chunk.
        """
        reading = self.read()
        grown = max(0, reading.split_bytes - (self._split_before or 0))
        free, reusable = reading.free_bytes + grown, reading.reusable_bytes + grown
        return replace(reading, free_bytes=free, reusable_bytes=reusable)

    def planned(self, plan: Callable[[], Plan], is_best: Callable[[Plan], bool]) -> Plan:
        """What `plan` gives after memory was released. Old garbage, which takes long to collect, stays if the
        plan is one that more free memory would not change.
        """
        release_young = getattr(self.probe, "release_young", None)
        if release_young is not None:
            release_young()
            try:
                found = plan()
                if is_best(found):
                    return found
            except DoesNotFit:
                pass
        self.probe.release()
        return plan()

    def host_budget_bytes(self) -> int | None:
        """Host memory that a layer sweep may use to park activations.

        None where nothing is parked, or where the device's memory is the host's.
        """
        if not self._parks_activations or self._device.type == "cpu":
            return None
        return read_host().free_bytes


class Replanner:
    """Chooses the next cut of a running decode.

    `emit` receives the kind and the data of each event. For `wait_for_memory` see `AdaptiveDecoder`.
    """

    def __init__(
        self,
        profile: MemoryProfile,
        policy: Policy,
        inputs: PlanInputs,
        memory: DecodeMemory,
        learning: DecodeLearning,
        emit: Callable[[str, Mapping[str, Any]], None],
        wait_for_memory: Callable[[int], bool] | None = None,
    ) -> None:
        self._profile = profile
        self._policy = policy
        self._inputs = inputs
        self._memory = memory
        self._learning = learning
        self._emit = emit
        self._wait_for_memory = wait_for_memory

    def after_failure(
        self, run: DecodeRun, shape: LatentShape, held_bytes: int, waiting_bytes: int = 0
    ) -> None:
        """Choose the next cut after an out-of-memory, in this order:

        1. A cut that follows the failed one in the fallback order.
        2. A larger cut that has not failed at this chunk and is expected to fit: libraries may need more
           memory for few frames than for some.
        3. The failed cut once more, because another program may have used the memory for a moment only.
        4. A larger cut that has not failed at this chunk: any if the smallest cut has its memory, else one
           that is expected to fit without the reserve.
        5. The smallest cut, once `wait_for_memory` says that the memory for it is free.

        `held_bytes` are the bytes of the decode's state; `waiting_bytes` are the part of them that no
        prediction includes. Raises `DecodeOutOfMemory` where all of these have failed. Where the last failure
        may have another cause, its own error is raised instead, at the latest after `MOST_DOUBTFUL_FAILURES`.
        """
        run.retries += 1
        if run.doubtful is not None:
            run.doubtful_failures += 1
            if run.doubtful_failures == MOST_DOUBTFUL_FAILURES:
                raise run.doubtful
        self._memory.probe.release()
        reading = self._memory.read()
        failed = run.cut
        failed_before = failed in run.failed_at_chunk
        run.failed[failed] = reading.free_bytes
        run.failed_at_chunk.add(failed)
        if run.doubtful is None:
            self._learning.failed(shape, failed, reading.free_bytes + held_bytes)
        else:
            run.suspected.append((failed, reading.free_bytes + held_bytes))
        data = {"frames_per_chunk": failed.frames_per_chunk, "free_bytes": reading.free_bytes}
        if run.doubtful is None:
            self._emit("oom", {**data, "message": run.failure})
        elif run.doubtful_failures == 1:  # those after it may be one error that no chunk size avoids
            self._emit("oom", {**data, "message": run.failure, "doubtful": True})
        order, predicted_bytes = self._fallback_order(shape), held_bytes - waiting_bytes
        following = order.next_cut(failed, run.may_follow, reading, predicted_bytes)
        if run.doubtful_failures == MOST_DOUBTFUL_FAILURES - 1 and following is not None and following.exact:
            last = order.smallest()
            following = last if run.may_follow(last) else following
        room_bytes: int | None = budget_of(reading, self._policy, predicted_bytes)
        if failed_before:
            free_bytes = reading.free_bytes + predicted_bytes
            # Where the smallest cut had its memory, the prediction may be wrong for larger ones, too.
            room_bytes = None if free_bytes >= order.least_bytes() else free_bytes
        if following is not None:
            run.continue_with(following)
            self._emit_replan(run, failed, "out_of_memory", reading)
            names = [cut.strategy(shape.frames).value for cut in (failed, following)]
            if names[0] != names[1]:
                self._emit("fallback", {"from": names[0], "to": names[1]})
        elif failed.exact and (larger := order.smallest_untried(run.failed_at_chunk, room_bytes)):
            run.continue_with(larger)
            self._emit_replan(run, failed, "out_of_memory", reading)
        elif failed_before:
            if run.doubtful is not None:
                raise run.doubtful
            self._wait(run, order, reading, predicted_bytes)

    def _wait(self, run: DecodeRun, order: FallbackOrder, reading: MemoryReading, held_bytes: int) -> None:
        """Wait for the memory of the smallest cut, or raise `DecodeOutOfMemory`."""
        failed = run.cut
        needed_bytes = max(0, order.least_bytes() - held_bytes) if failed.exact else 0
        if not failed.exact or self._wait_for_memory is None or not self._wait_for_memory(needed_bytes):
            raise DecodeOutOfMemory(
                frames_per_chunk=run.smallest.frames_per_chunk,
                retries=run.retries,
                frames_done=run.video_frames,
                needed_bytes=needed_bytes,
                free_bytes=reading.free_bytes,
            )
        reading = self._memory.read()
        run.failed_at_chunk.clear()
        run.continue_with(order.smallest() if not self._policy.forced else failed)
        self._emit_replan(run, failed, "memory_rose", reading)

    def after_chunk(
        self, run: DecodeRun, shape: LatentShape, held_bytes: int, seconds: float, *, frames_left: int
    ) -> None:
        """Fit the next chunk to the memory that is free now. The last chunk took `seconds`.

        `held_bytes` are the bytes of the decode's state that a prediction includes; `frames_left` are the
        latent frames that are still to be fed.
        """
        reading = self._memory.read_between_chunks()
        if self.note_spill(run, shape, reading, seconds) or self._policy.forced or not frames_left:
            return
        if run.doubtful is not None:
            return  # the smaller cut has given no frames yet
        order, now = self._fallback_order(shape), run.cut
        fits = order.fastest_that_fits(reading, held_bytes, at_most=now)
        if fits is None or fits.order > now.order:
            run.continue_with(fits or order.smallest())  # a bound that is too high must not end a decode
            reason = "memory_fell"
        else:
            cautious = replace(reading, free_bytes=round(reading.free_bytes * GROWTH_SHARE))
            failed = run.failed_lately(reading.free_bytes)
            most = order.cuts_after(failed)[:1] if failed else [Cut(max(1, shape.frames - 1))]
            larger = order.fastest_that_fits(cautious, held_bytes, at_most=most[0]) if most else None
            if larger is not None and larger.order < now.order:
                run.continue_with(larger)
            reason = "memory_rose"
        self._emit_replan(run, now, reason, reading)

    def note_spill(self, run: DecodeRun, shape: LatentShape, reading: MemoryReading, seconds: float) -> bool:
        """Whether the last chunk overflowed into host memory. If so, the next chunk is smaller, if possible.

        The learned margins record a spill as an out-of-memory: the free memory was not enough.
        """
        found = run.watch.after_chunk(reading, seconds, run.cut.frames_per_chunk)
        if found is None:
            return False
        sign, free_bytes = found
        spilled = run.cut
        finished = run.video_frames == run.total_video_frames
        run.spills += 1
        run.failed[spilled] = reading.free_bytes
        self._learning.failed(shape, spilled, free_bytes)
        following = [] if finished else self._fallback_order(shape).cuts_after(spilled)
        smaller = [cut for cut in following if cut.exact]
        if smaller:
            self._memory.probe.release()
            run.continue_with(smaller[0])
        sizes = spilled.frames_per_chunk, run.cut.frames_per_chunk
        self._emit("spill", spill_data(sign, *sizes, reading, seconds))
        return True

    def _fallback_order(self, shape: LatentShape) -> FallbackOrder:
        inputs = replace(self._inputs, host_budget_bytes=self._memory.host_budget_bytes())
        return FallbackOrder(self._profile, shape, self._policy, inputs)

    def _emit_replan(self, run: DecodeRun, before: Cut, reason: str, reading: MemoryReading) -> None:
        if run.cut != before:
            self._emit("replan", replan_data(before, run.cut, reason, reading))
