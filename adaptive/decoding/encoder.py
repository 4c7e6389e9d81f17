"""Encodes video to latents in chunks: exact, and in memory that does not grow with the length of the video.

Owns the choice of the chunk size by the memory that is free. The stream cuts the video and computes the
latents (see `adaptive.stream.encode_stream`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from functools import lru_cache, partial
from typing import Any

import torch
from torch import Tensor

from adaptive.decoding.encode_functions import encode as encode
from adaptive.decoding.encode_functions import posterior_values
from adaptive.decoding.encode_functions import stream_encode as stream_encode
from adaptive.device.out_of_memory import MemoryFailure, memory_failure
from adaptive.device.probe import MemoryProbe, open_probe
from adaptive.errors import DoesNotFit
from adaptive.families import family_of
from adaptive.memory.live_bytes import trace_peak
from adaptive.memory.margins import LearnedMargins
from adaptive.memory.traced_vae import TracedVae, dtype_name
from adaptive.planning.planner import Policy, budget_of
from adaptive.stream.encode_stream import EncodeStream
from adaptive.stream.inputs import refuse_gradient
from adaptive.stream.offload import execution_device, run_offload_hook
from adaptive.stream.vae_view import encodes_in_chunks
from adaptive.types import strategy_of

# Latent frames a chunk of a stream. Chunks of more than eight take more memory and save no time.
STREAMED_LATENT_FRAMES = (8, 4, 2, 1)
MOST_DOUBTFUL_FAILURES = 4  # in a row, of errors that may have another cause than memory
STREAMED_CHUNKS = 3, 5  # traced lengths; beyond the longer one the peak is constant or grows evenly

_Traced = Callable[[TracedVae, tuple[int, ...], int], int]


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


class AdaptiveEncoder:
    """Encodes videos with one VAE, in the largest chunks that fit the memory that is free.

    The VAE is looked at anew for each encode. Only the budget and the reserve of `policy` are used. Not
    thread-safe.
    """

    _device: torch.device
    _probe: MemoryProbe

    def __init__(self, vae: Any, *, probe: MemoryProbe | None = None, policy: Policy | None = None) -> None:
        self._vae = vae
        self._given_probe = probe
        self._probes: dict[str, MemoryProbe] = {}  # by device, where none was given
        self._policy = policy or Policy()

    def _look(self) -> None:
        """Find the VAE's device and its free memory, after the VAE's offload hook has run: what its weights
        take is not free for encoding.
        """
        run_offload_hook(self._vae)
        self._device = execution_device(self._vae)
        if self._given_probe is None and str(self._device) not in self._probes:
            self._probes[str(self._device)] = open_probe(str(self._device))
        self._probe = self._given_probe or self._probes[str(self._device)]
        self._probe.release()

    def plan(self, shape: tuple[int, ...], *, below: int | None = None) -> EncodePlan:
        """The plan for a video of `shape` (`[B, C, F, H, W]`) in the memory that is free now.

        With `below`, only chunks of fewer video frames are considered. Raises `DoesNotFit` with the bytes of
        the smallest chunk where none fits.
        """
        self._look()
        return self._fitting(shape, _chunk_sizes(shape[2], below), _traced_bytes)

    def encode(
        self, video: Tensor, *, posterior: str = "mode", **encode_kwargs: Any
    ) -> tuple[Tensor, EncodePlan]:
        """Latents of `video` as `adaptive.encode` returns them, and the plan of their smallest chunks.

        After an out-of-memory it continues in smaller chunks from where it was; the error of the smallest
        chunk is raised unchanged, and after a few attempts an error that is only possibly an out-of-memory.
        """
        refuse_gradient("encode", video, encode_kwargs)
        shape = tuple(video.shape)
        plan = self.plan(shape)
        doubtful = 0
        if plan.frames_per_chunk == plan.video_frames:
            whole = partial(encode, self._vae, video, posterior=posterior, **encode_kwargs)
            latents, failure = self._attempt(whole, last=not self._can_shrink(plan, encode_kwargs))
            if failure is None:
                assert latents is not None
                return latents, plan
            plan = self._plan_smaller(shape, _chunk_sizes(shape[2], plan.frames_per_chunk))
            doubtful = int(failure is MemoryFailure.POSSIBLE)
        posterior_values(self._vae, torch.empty(1, 2), posterior)  # raises before any frame is encoded
        stream = EncodeStream(self._vae, [video], shape[2], **encode_kwargs)
        parts: list[Tensor] = []
        while not stream.finished:
            smaller = self._smaller_sizes(stream, plan)
            step = partial(stream.step, plan.frames_per_chunk)
            latents, failure = self._attempt(step, last=not smaller or doubtful + 1 == MOST_DOUBTFUL_FAILURES)
            if failure is None:
                doubtful = 0
                if latents is not None:
                    parts.append(posterior_values(self._vae, latents, posterior))
                continue
            doubtful += failure is MemoryFailure.POSSIBLE
            final = doubtful + 1 == MOST_DOUBTFUL_FAILURES
            held_bytes = stream.state_bytes + sum(part.nbytes for part in parts)
            plan = self._plan_smaller(shape, smaller[-1:] if final else smaller, held_bytes)
        return torch.cat(parts, 2), plan

    def plan_stream(self, shape: tuple[int, ...], *, frames_per_chunk: int | None = None) -> EncodePlan:
        """The plan for streaming a video of `shape` (`[B, C, F, H, W]`) in the memory that is free now.

        A given `frames_per_chunk` is used or refused. Raises `DoesNotFit` with the bytes of the smallest
        chunk where none fits, and `UnsupportedVae` where this VAE cannot encode in chunks.
        """
        self._look()
        return self._fitting(shape, self._stream_sizes(shape[2], frames_per_chunk), _streamed_bytes)

    def stream(
        self,
        video: Iterable[Tensor],
        shape: tuple[int, ...],
        *,
        frames_per_chunk: int | None = None,
        posterior: str = "mode",
    ) -> Iterator[Tensor]:
        """Latents `[B, C, t, h, w]` in order, of a video of `shape` given in parts of any lengths.

        Reads free memory again before each chunk. After an out-of-memory the chunks become smaller; the error
        of the smallest chunk is raised unchanged. Raises as `plan_stream` does.
        """
        size = self.plan_stream(shape, frames_per_chunk=frames_per_chunk).frames_per_chunk
        sizes = self._stream_sizes(shape[2], frames_per_chunk)
        stream = EncodeStream(self._vae, video, shape[2])
        while not stream.finished:
            latents, failure = self._attempt(partial(stream.step, size), last=size <= sizes[-1])
            if failure is not None:
                sizes = [each for each in sizes if each < size]
                self._probe.release()
            elif latents is not None:
                yield posterior_values(self._vae, latents, posterior)
            del latents  # or it would stay alive through the next step
            try:
                size = self._fitting(shape, sizes, _streamed_bytes, stream.state_bytes).frames_per_chunk
            except DoesNotFit:
                size = sizes[-1]  # a bound that is too high must not end an encode

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

    def _can_shrink(self, plan: EncodePlan, encode_kwargs: dict[str, Any]) -> bool:
        """Whether a video that was to be encoded by one call can be encoded in chunks instead."""
        return plan.video_frames > 1 and encodes_in_chunks(self._vae, encode_kwargs)

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
            return self._fitting(shape, sizes, _traced_bytes, held_bytes)
        except DoesNotFit as error:
            free_bytes = self._probe.read().free_bytes
            return EncodePlan(shape[2], sizes[-1], error.needed_bytes, error.budget_bytes, free_bytes)

    def _stream_sizes(self, frames: int, forced: int | None) -> list[int]:
        """Chunk sizes of a stream in video frames, largest first."""
        if forced is not None:
            if forced < 1:
                raise ValueError(f"frames_per_chunk must be at least 1, got {forced}")
            return [min(forced, frames)]
        ratio = family_of(self._vae).traits_of(self._vae).temporal_ratio
        return sorted({min(frames, count * ratio) for count in STREAMED_LATENT_FRAMES}, reverse=True)

    def _fitting(
        self, shape: tuple[int, ...], sizes: list[int], live: _Traced, held_bytes: int = 0
    ) -> EncodePlan:
        """Plan with the largest of `sizes` that fits; the encode already holds `held_bytes`."""
        reading = self._probe.read()
        budget = budget_of(reading, self._policy, held_bytes)
        needed = 0
        for size in sizes:
            needed = self._needed_bytes(shape, size, live)
            if needed <= budget:
                return EncodePlan(shape[2], size, needed, budget, reading.free_bytes)
        raise DoesNotFit("encoding", needed_bytes=needed, budget_bytes=budget)

    def _needed_bytes(self, shape: tuple[int, ...], frames_per_chunk: int, live: _Traced) -> int:
        dtype = dtype_name(self._vae.dtype)
        traced = TracedVae(type(self._vae), self._vae.config, dtype)
        live_bytes = live(traced, shape, frames_per_chunk)
        strategy = strategy_of(frames_per_chunk, shape[2])
        residuals = LearnedMargins(str(self._device))
        return residuals.estimate(traced.traits.family, dtype, strategy, live_bytes).upper_bytes


def _chunk_sizes(frames: int, below: int | None) -> list[int]:
    """For each number of chunks the smallest chunk size that gives it, largest first."""
    sizes = {math.ceil(frames / chunks) for chunks in range(1, frames + 1)}
    return sorted((size for size in sizes if below is None or size < below), reverse=True)


@lru_cache(maxsize=256)
def _traced_bytes(traced: TracedVae, shape: tuple[int, ...], frames_per_chunk: int) -> int:
    """Peak live bytes of an encode above weights and video, with its latents."""
    video = torch.empty(shape, device="meta", dtype=getattr(torch, traced.dtype))
    chunk = None if frames_per_chunk == shape[2] else frames_per_chunk
    module = traced.module  # made before counting begins: weights do not count

    def run() -> Tensor:
        return encode(module, video, frames_per_chunk=chunk, posterior="parameters")

    return trace_peak(run).peak_bytes


def _streamed_bytes(traced: TracedVae, shape: tuple[int, ...], frames_per_chunk: int) -> int:
    """Peak live bytes of a streamed encode above weights, with its input frames and without its latents.

    After a few chunks the peak is constant, or grows by the same amount a chunk where the encoder keeps
    earlier frames. So longer videos are extrapolated from two traced lengths.
    """
    frames = shape[2]
    step = traced.traits.temporal_ratio * math.ceil(frames_per_chunk / traced.traits.temporal_ratio)
    short, long = (traced.traits.first_frame_alone + step * chunks for chunks in STREAMED_CHUNKS)
    if frames <= long:
        return _streamed_peak(traced, shape, frames_per_chunk)
    before, after = (
        _streamed_peak(traced, (*shape[:2], count, *shape[3:]), frames_per_chunk) for count in (short, long)
    )
    return after + max(0, after - before) * (frames - long) // (long - short)


@lru_cache(maxsize=256)
def _streamed_peak(traced: TracedVae, shape: tuple[int, ...], frames_per_chunk: int) -> int:
    whole = torch.empty(shape, device="meta", dtype=getattr(torch, traced.dtype))
    parts = (part.clone() for part in torch.split(whole, traced.traits.temporal_ratio, 2))

    def run() -> None:
        stream = EncodeStream(traced.module, parts, shape[2])
        while not stream.finished:
            stream.step(frames_per_chunk)

    return trace_peak(run).peak_bytes
