"""One encode: what the VAE is at its beginning, the largest chunks that fit, and the loop around its stream.

Owns the loop, and how it goes on after an out-of-memory. It does not know files, how latents are made
(`adaptive.stream.encode_stream`), or how bytes are traced (`adaptive.memory.encode_trace`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from adaptive.decoding.encode_functions import posterior_values
from adaptive.decoding.learning import MarginLearning, MemoryUse
from adaptive.decoding.overlaps import Overlap, noting_overlaps
from adaptive.decoding.replanning import MOST_DOUBTFUL_FAILURES, DecodeMemory
from adaptive.device.out_of_memory import MemoryFailure, memory_failure
from adaptive.device.probe import MemoryProbe
from adaptive.errors import DoesNotFit, UnsupportedVae
from adaptive.memory.encode_trace import chunked_bytes, whole_bytes
from adaptive.memory.margins import LearnedMargins
from adaptive.memory.traced_vae import TracedVae, dtype_name
from adaptive.planning.planner import Policy, budget_of
from adaptive.stream import VaeView
from adaptive.stream.encode_stream import EncodeStream, encode_whole
from adaptive.types import Chunking, strategy_of

# Latent frames a chunk of a stream. Chunks of more than eight take more memory and save no time.
STREAMED_LATENT_FRAMES = (8, 4, 2, 1)


@dataclass(frozen=True, slots=True)
class EncodePlan:
    """How one encode runs: video frames a chunk, and the bytes that decided it."""

    video_frames: int
    frames_per_chunk: int
    predicted_peak_bytes: int
    budget_bytes: int
    free_bytes: int

    def as_json(self) -> dict[str, Any]:
        """JSON values, with the strategy's name."""
        return {"strategy": strategy_of(self.frames_per_chunk, self.video_frames).value, **asdict(self)}


class OneEncode:
    """The plan and the stream get the same `view`, so what is planned is what runs.

    Margins are learned beside those of decodes, under the family's name with "encoder".
    """

    def __init__(self, view: VaeView, probe: MemoryProbe, policy: Policy, residuals: LearnedMargins) -> None:
        self._view = view
        self._probe = probe
        self._policy = policy
        self._residuals = residuals
        dtype = _predictable_dtype(view)
        self._traced = TracedVae(type(view.vae), view.vae.config, dtype)
        self._alike = f"{view.traits.family} encoder", dtype
        self._learning = MarginLearning(residuals, *self._alike)
        self._memory = DecodeMemory(view, probe, parks_activations=False)

    @property
    def can_stream(self) -> bool:
        """Whether the VAE encodes in chunks with these arguments."""
        return self._view.refusal is None

    def plan(self, shape: tuple[int, ...], *, below: int | None = None) -> EncodePlan:
        """See `AdaptiveEncoder.plan`."""
        sizes = _chunk_sizes(shape[2], below)
        return self._memory.planned(
            lambda: self._fitting(shape, sizes), lambda plan: plan.frames_per_chunk == sizes[0]
        )

    def plan_stream(self, shape: tuple[int, ...], frames_per_chunk: int | None) -> EncodePlan:
        """See `AdaptiveEncoder.plan_stream`."""
        sizes = self._stream_sizes(shape[2], frames_per_chunk)
        return self._memory.planned(
            lambda: self._fitting(shape, sizes, streamed=True),
            lambda plan: plan.frames_per_chunk == sizes[0],
        )

    def encode(self, video: Tensor, posterior: str) -> tuple[Tensor, EncodePlan]:
        """See `AdaptiveEncoder.encode`."""
        plan = self.plan(tuple(video.shape))
        with noting_overlaps() as overlap:
            self._probe.reset_peak()
            latents, last = self._encoded(video, plan, posterior)
            if last == plan:
                self._learn(tuple(video.shape), plan.frames_per_chunk, overlap, held_bytes=latents.nbytes)
        return latents, last

    def _encoded(self, video: Tensor, plan: EncodePlan, posterior: str) -> tuple[Tensor, EncodePlan]:
        shape, vae, doubtful = tuple(video.shape), self._view.vae, 0
        if plan.frames_per_chunk == plan.video_frames:
            can_shrink = plan.video_frames > 1 and self.can_stream
            parameters, failure = self._attempt(partial(encode_whole, self._view, video), last=not can_shrink)
            if failure is None:
                assert parameters is not None
                return posterior_values(vae, parameters, posterior), plan
            self._note_failure(shape, plan.frames_per_chunk, failure)
            plan = self._plan_smaller(shape, _chunk_sizes(shape[2], plan.frames_per_chunk))
            doubtful = int(failure is MemoryFailure.POSSIBLE)
        posterior_values(vae, torch.empty(1, 2), posterior)  # raises before any frame is encoded
        stream = EncodeStream(self._view, [video], shape[2])
        parts: list[Tensor] = []
        while not stream.finished:
            smaller = self._smaller_sizes(stream, plan)
            step = partial(stream.step, plan.frames_per_chunk)
            latents, failure = self._attempt(step, last=not smaller or doubtful + 1 == MOST_DOUBTFUL_FAILURES)
            if failure is None:
                doubtful = 0
                if latents is not None:
                    parts.append(posterior_values(vae, latents, posterior))
                continue
            doubtful += failure is MemoryFailure.POSSIBLE
            final = doubtful + 1 == MOST_DOUBTFUL_FAILURES
            held_bytes = stream.state_bytes + sum(part.nbytes for part in parts)
            self._note_failure(shape, plan.frames_per_chunk, failure, held_bytes)
            plan = self._plan_smaller(shape, smaller[-1:] if final else smaller, held_bytes)
        return torch.cat(parts, 2), plan

    def stream(
        self,
        video: Iterable[Tensor],
        shape: tuple[int, ...],
        frames_per_chunk: int | None,
        posterior: str,
    ) -> Iterator[Tensor]:
        """See `AdaptiveEncoder.stream`."""
        size = planned = self.plan_stream(shape, frames_per_chunk).frames_per_chunk
        sizes = self._stream_sizes(shape[2], frames_per_chunk)
        stream = EncodeStream(self._view, video, shape[2])
        with noting_overlaps() as overlap:
            self._probe.reset_peak()
            undisturbed = True
            while not stream.finished:
                undisturbed = undisturbed and size == planned
                latents, failure = self._attempt(partial(stream.step, size), last=size <= sizes[-1])
                if failure is not None:
                    self._note_failure(shape, size, failure, stream.state_bytes, streamed=True)
                    sizes = [each for each in sizes if each < size]
                    self._probe.release()
                elif latents is not None:
                    yield posterior_values(self._view.vae, latents, posterior)
                del latents  # or it would stay alive through the next step
                try:
                    plan = self._fitting(shape, sizes, stream.state_bytes, streamed=True)
                    size = plan.frames_per_chunk
                except DoesNotFit:
                    size = sizes[-1]  # a bound that is too high must not end an encode
            if undisturbed:
                self._learn(shape, planned, overlap, streamed=True)

    def _attempt(
        self, work: Callable[[], Tensor | None], *, last: bool
    ) -> tuple[Tensor | None, MemoryFailure | None]:
        """The result of `work` and None, or None and how surely it ran out of memory.

        Raises the error if it is another, or if this was the `last` attempt. The tensors of failed work are
        released before this returns.
        """
        try:
            return work(), None
        except Exception as error:
            failure = memory_failure(error)
            if failure is None or last:
                raise
        return None, failure

    def _note_failure(
        self,
        shape: tuple[int, ...],
        size: int,
        failure: MemoryFailure,
        held_bytes: int = 0,
        *,
        streamed: bool = False,
    ) -> None:
        """Learn from a certain out-of-memory."""
        if failure is MemoryFailure.CERTAIN:
            self._probe.release()
            use = self._use(shape, size, streamed=streamed)
            self._learning.failed(use, self._memory.read().free_bytes + held_bytes)

    def _learn(
        self,
        shape: tuple[int, ...],
        size: int,
        overlap: Overlap,
        *,
        held_bytes: int = 0,
        streamed: bool = False,
    ) -> None:
        measured = self._probe.peak(held_bytes) if overlap.alone else None
        use = self._use(shape, size, streamed=streamed)
        self._learning.finished(use, measured, noise_bytes=self._probe.noise_bytes)

    def _smaller_sizes(self, stream: EncodeStream, plan: EncodePlan) -> list[int]:
        """Chunk sizes with which the stream's next step takes fewer frames than with the plan's."""
        frames = stream.next_frames(plan.frames_per_chunk)
        sizes = _chunk_sizes(plan.video_frames, plan.frames_per_chunk)
        return [size for size in sizes if stream.next_frames(size) < frames]

    def _plan_smaller(self, shape: tuple[int, ...], sizes: list[int], held_bytes: int = 0) -> EncodePlan:
        """The plan with the largest of `sizes` that fits, else the smallest: an encode has begun, and a bound
        that is too high must not end it.
        """
        self._probe.release()
        try:
            return self._fitting(shape, sizes, held_bytes)
        except DoesNotFit as error:
            free_bytes = self._memory.read().free_bytes
            return EncodePlan(shape[2], sizes[-1], error.needed_bytes, error.budget_bytes, free_bytes)

    def _stream_sizes(self, frames: int, forced: int | None) -> list[int]:
        """Chunk sizes of a stream in video frames, largest first."""
        if forced is not None:
            if forced < 1:
                raise ValueError(f"frames_per_chunk must be at least 1, got {forced}")
            return [min(forced, frames)]
        ratio = self._view.traits.temporal_ratio
        return sorted({min(frames, count * ratio) for count in STREAMED_LATENT_FRAMES}, reverse=True)

    def _fitting(
        self, shape: tuple[int, ...], sizes: list[int], held_bytes: int = 0, *, streamed: bool = False
    ) -> EncodePlan:
        """Plan with the largest of `sizes` that fits; the encode already holds `held_bytes`.

        Larger chunks take more, so the boundary is found by halving: each trace takes a while.
        """
        reading = self._memory.read()
        budget = budget_of(reading, self._policy, held_bytes)

        def needed(place: int) -> int:
            return self._needed_bytes(shape, sizes[place], streamed=streamed)

        first, last = 0, len(sizes) - 1
        if (found := needed(0)) > budget and (found := needed(last)) <= budget:
            while first + 1 < last:
                middle = (first + last) // 2
                if needed(middle) > budget:
                    first = middle
                else:
                    last = middle
            found, first = needed(last), last
        if found > budget:
            raise DoesNotFit("encoding", needed_bytes=found, budget_bytes=budget)
        return EncodePlan(shape[2], sizes[first], found, budget, reading.free_bytes)

    def _needed_bytes(self, shape: tuple[int, ...], size: int, *, streamed: bool) -> int:
        use = self._use(shape, size, streamed=streamed)
        return self._residuals.estimate(*self._alike, use.strategy, use.live_bytes, use.chunking).upper_bytes

    def _use(self, shape: tuple[int, ...], size: int, *, streamed: bool) -> MemoryUse:
        """The chunk size as margins know it. One call encodes all frames, unless they are streamed."""
        if size >= shape[2] and not streamed:
            live_bytes = whole_bytes(self._traced, shape)
        elif self._view.refusal is not None:
            raise self._view.refusal
        else:
            live_bytes = chunked_bytes(self._traced, shape, size, streamed=streamed)
        return MemoryUse(strategy_of(size, shape[2]), Chunking(shape[2], size), live_bytes)


def _predictable_dtype(view: VaeView) -> str:
    try:
        return dtype_name(view.dtype)
    except ValueError:
        raise UnsupportedVae(type(view.vae).__name__, f"predicting its memory in {view.dtype}") from None


def _chunk_sizes(frames: int, below: int | None) -> list[int]:
    """For each number of chunks the smallest chunk size that gives it, largest first."""
    sizes = {math.ceil(frames / chunks) for chunks in range(1, frames + 1)}
    return sorted((size for size in sizes if below is None or size < below), reverse=True)
