"""Encodes video to latents in chunks: exact, and in memory that does not grow with the length of the video.

Owns the choice of the chunk size by the memory that is free, and the choice of the posterior's values. The
stream cuts the video and computes the latents (see `adaptive.stream.encode_stream`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from adaptive.device.probe import MemoryProbe, is_out_of_memory, open_probe
from adaptive.errors import DoesNotFit
from adaptive.families import family_of
from adaptive.memory.live_bytes import trace_peak
from adaptive.memory.margins import LearnedMargins
from adaptive.memory.traced_vae import TracedVae, dtype_name
from adaptive.planning.planner import Policy, budget_of
from adaptive.stream.encode_stream import EncodeStream
from adaptive.stream.layers.convolution import convolutions_for
from adaptive.stream.offload import execution_device, without_splitting
from adaptive.types import strategy_of

# Latent frames a chunk of a stream. Chunks of more than eight take more memory and save no time.
STREAMED_LATENT_FRAMES = (8, 4, 2, 1)
STREAMED_CHUNKS = 3, 5  # traced lengths; beyond the longer one the peak is constant or grows evenly

_Traced = Callable[[TracedVae, tuple[int, ...], int], int]


def encode(
    vae: Any,
    video: Tensor,
    *,
    frames_per_chunk: int | None = None,
    posterior: str = "mode",
    **encode_kwargs: Any,
) -> Tensor:
    """Latents of `video` (`[B, C, F, H, W]` in -1..1, on any device): `[B, C, T, h, w]` on the VAE's device.

    `frames_per_chunk` video frames are encoded at a time; None means one call of the VAE's own `encode`.
    `posterior`: "mode" gives the most likely latents, "parameters" the mean and log-variance as
    `[B, 2C, T, h, w]`, which diffusers' `DiagonalGaussianDistribution` takes. VAEs without variance, such as
    Cosmos, give the same for both. Raises `ValueError` for a number of frames that the VAE cannot encode, and
    `UnsupportedVae` for chunks of a VAE that cannot stream.
    """
    if frames_per_chunk is not None and frames_per_chunk < video.shape[2]:
        parts = stream_encode(
            vae, video, frames_per_chunk=frames_per_chunk, posterior=posterior, **encode_kwargs
        )
        return torch.cat(list(parts), 2)
    _traits(vae).latent_frames(video.shape[2])
    device = execution_device(vae)
    with torch.no_grad(), without_splitting(vae), convolutions_for(device):
        parameters = family_of(vae).encode_whole(vae, video.to(device), encode_kwargs)
    return _posterior_values(vae, parameters, posterior)


def stream_encode(
    vae: Any,
    video: Tensor | Iterable[Tensor],
    *,
    frames_per_chunk: int,
    posterior: str = "mode",
    **encode_kwargs: Any,
) -> Iterator[Tensor]:
    """Encode in chunks of about `frames_per_chunk` video frames; yields latents `[B, C, t, h, w]` in order.

    `video` is one tensor `[B, C, F, H, W]`, or its parts in order, of any lengths. Values, `posterior` and
    errors are those of `encode`; in parts, an invalid number of frames is found at the end.
    """
    if frames_per_chunk < 1:
        raise ValueError(f"frames_per_chunk must be at least 1, got {frames_per_chunk}")
    _posterior_values(vae, torch.empty(1, 2), posterior)  # raises before any frame is read
    parts, total = ([video], video.shape[2]) if isinstance(video, Tensor) else (video, None)
    stream = EncodeStream(vae, parts, total, **encode_kwargs)
    return _steps(vae, stream, frames_per_chunk, posterior)


def _steps(vae: Any, stream: EncodeStream, frames_per_chunk: int, posterior: str) -> Iterator[Tensor]:
    while not stream.finished:
        latents = stream.step(frames_per_chunk)
        if latents is not None:
            yield _posterior_values(vae, latents, posterior)
        del latents  # or it would stay alive through the next step


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

    Only the budget and the reserve of `policy` are used. Not thread-safe.
    """

    def __init__(self, vae: Any, *, probe: MemoryProbe | None = None, policy: Policy | None = None) -> None:
        self._vae = vae
        self._device = execution_device(vae)
        self._probe = probe or open_probe(str(self._device))
        self._policy = policy or Policy()

    def plan(self, shape: tuple[int, ...], *, below: int | None = None) -> EncodePlan:
        """The plan for a video of `shape` (`[B, C, F, H, W]`) in the memory that is free now.

        With `below`, only chunks of fewer video frames are considered. Raises `DoesNotFit` with the bytes of
        the smallest chunk where none fits.
        """
        self._probe.release()
        reading = self._probe.read()
        budget = budget_of(reading, self._policy)
        needed = 0
        for size in _chunk_sizes(shape[2], below):
            needed = self._needed_bytes(shape, size, _traced_bytes)
            if needed <= budget:
                return EncodePlan(shape[2], size, needed, budget, reading.free_bytes)
        raise DoesNotFit("encoding", needed_bytes=needed, budget_bytes=budget)

    def encode(
        self, video: Tensor, *, posterior: str = "mode", **encode_kwargs: Any
    ) -> tuple[Tensor, EncodePlan]:
        """Latents of `video` as `adaptive.encode` returns them, and the plan that they were encoded with.

        After an out-of-memory it plans smaller chunks; the error of the smallest chunk is raised unchanged.
        """
        shape = tuple(video.shape)
        plan = self.plan(shape)
        while (latents := self._attempt(video, plan, posterior, encode_kwargs)) is None:
            plan = self.plan(shape, below=plan.frames_per_chunk)
        return latents, plan

    def plan_stream(self, shape: tuple[int, ...], *, frames_per_chunk: int | None = None) -> EncodePlan:
        """The plan for streaming a video of `shape` (`[B, C, F, H, W]`) in the memory that is free now.

        A given `frames_per_chunk` is used or refused. Raises `DoesNotFit` with the bytes of the smallest
        chunk where none fits, and `UnsupportedVae` where this VAE cannot encode in chunks.
        """
        self._probe.release()
        return self._stream_plan(shape, self._stream_sizes(shape[2], frames_per_chunk))

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
            latents, failed = self._step(stream, size, sizes[-1])
            if failed:
                sizes = [each for each in sizes if each < size]
                self._probe.release()
            elif latents is not None:
                yield _posterior_values(self._vae, latents, posterior)
            del latents  # or it would stay alive through the next step
            try:
                size = self._stream_plan(shape, sizes, stream.state_bytes).frames_per_chunk
            except DoesNotFit:
                size = sizes[-1]  # a bound that is too high must not end an encode

    def _step(self, stream: EncodeStream, size: int, least: int) -> tuple[Tensor | None, bool]:
        """Latents of one step (None: none yet), and whether it ran out of memory with smaller chunks left.
        The tensors of a failed step are released before this returns.
        """
        try:
            return stream.step(size), False
        except Exception as error:
            if size <= least or not is_out_of_memory(error):
                raise
        return None, True

    def _stream_sizes(self, frames: int, forced: int | None) -> list[int]:
        """Chunk sizes of a stream in video frames, largest first."""
        if forced is not None:
            if forced < 1:
                raise ValueError(f"frames_per_chunk must be at least 1, got {forced}")
            return [min(forced, frames)]
        ratio = _traits(self._vae).temporal_ratio
        return sorted({min(frames, count * ratio) for count in STREAMED_LATENT_FRAMES}, reverse=True)

    def _stream_plan(self, shape: tuple[int, ...], sizes: list[int], held_bytes: int = 0) -> EncodePlan:
        """Plan with the largest of `sizes` that fits; the stream already holds `held_bytes`."""
        reading = self._probe.read()
        budget = budget_of(reading, self._policy, held_bytes)
        needed = 0
        for size in sizes:
            needed = self._needed_bytes(shape, size, _streamed_bytes)
            if needed <= budget:
                return EncodePlan(shape[2], size, needed, budget, reading.free_bytes)
        raise DoesNotFit("encoding", needed_bytes=needed, budget_bytes=budget)

    def _attempt(
        self, video: Tensor, plan: EncodePlan, posterior: str, encode_kwargs: dict[str, Any]
    ) -> Tensor | None:
        """Latents, or None after an out-of-memory with smaller chunks left; the tensors of a failed call are
        released before this returns.
        """
        chunk = None if plan.frames_per_chunk == plan.video_frames else plan.frames_per_chunk
        try:
            return encode(self._vae, video, frames_per_chunk=chunk, posterior=posterior, **encode_kwargs)
        except Exception as error:
            if plan.frames_per_chunk == 1 or not is_out_of_memory(error):
                raise
        return None

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


def _posterior_values(vae: Any, parameters: Tensor, posterior: str) -> Tensor:
    if posterior == "parameters" or (posterior == "mode" and not family_of(vae).has_variance):
        return parameters
    if posterior == "mode":
        return parameters.chunk(2, dim=1)[0].clone()
    raise ValueError(f"posterior must be 'mode' or 'parameters', got {posterior!r}")


def _traits(vae: Any) -> Any:
    return family_of(vae).traits(type(vae).__name__, vae.config)
