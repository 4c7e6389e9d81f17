"""Traces a VAE's encode on meta tensors: the bytes of one call, and of chunks.

A long video is not traced: after a few chunks each one takes as much as the one before, and adds its latents
and what an encoder that looks back keeps. Owns the lengths that are traced. It does not know devices, margins
or which chunks a plan considers.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from adaptive.memory.live_bytes import LiveBytes, trace_peak
from adaptive.memory.traced_vae import TracedVae
from adaptive.stream.encode_stream import EncodeStream, encode_whole
from adaptive.stream.vae_view import encode_view_of

_STEADY_PERIODS = 3  # traced of a long video beside its first and last chunk: the state is full after two
_WHOLE_CHUNKS = 3, 4  # traced of one call that runs chunk by chunk
# Of the traced peak. If longer videos add more, their peak may be where the latents are joined.
_LARGE_SHARE = 1 / 4


class _Step(NamedTuple):
    """One chunk: its peak above what the caller keeps, and the bytes of the latents that it gave."""

    peak_bytes: int
    latent_bytes: int

    def grown(self, more_bytes: int) -> _Step:
        """A later step, by when the encoder keeps so many more bytes."""
        return self._replace(peak_bytes=self.peak_bytes + more_bytes)


def whole_bytes(traced: TracedVae, shape: tuple[int, ...]) -> int:
    """Peak live bytes of encoding a video of `shape` (`[B, C, F, H, W]`) by one call, with its result."""
    frames, ratio = shape[2], traced.traits.temporal_ratio
    short, long = (traced.traits.first_frame_alone + ratio * (chunks - 1) for chunks in _WHOLE_CHUNKS)
    if not traced.family.batched_by_frame or frames <= long:
        return _whole_peak(traced, shape)
    before, after = (_whole_peak(traced, (*shape[:2], count, *shape[3:])) for count in (short, long))
    added = (after - before) * (frames - long) // ratio
    return _whole_peak(traced, shape) if added > after * _LARGE_SHARE else after + added


def chunked_bytes(traced: TracedVae, shape: tuple[int, ...], frames_per_chunk: int, *, streamed: bool) -> int:
    """Peak live bytes of encoding a video of `shape` in chunks.

    All latents are kept and joined, and the video's own bytes do not count. `streamed`: the caller keeps no
    latents, and the video is read in parts, which count. Raises `UnsupportedVae` where the VAE cannot encode
    in chunks.
    """
    chunks = _chunks(traced, shape[2], frames_per_chunk)
    # Chunks that are no multiple of the temporal ratio give latents in some steps only, periodically.
    ratio, size = traced.traits.temporal_ratio, chunks[min(1, len(chunks) - 1)]
    period = ratio // math.gcd(ratio, size)
    periods = max(0, (len(chunks) - 2) // period - _STEADY_PERIODS)  # that are not traced
    short = shape[2] - periods * period * size
    steps = _steps(traced, (*shape[:2], short, *shape[3:]), frames_per_chunk, streamed)
    if periods:
        full, last = steps[-1 - period : -1], steps[-1]
        before = steps[-1 - 2 * period : -1 - period]
        growth = max(
            0, *(after.peak_bytes - each.peak_bytes for each, after in zip(before, full, strict=True))
        )
        more = periods * growth
        repeated = [step.grown(more) for step in full] * periods
        steps = (*steps[:-1], *repeated, last.grown(more))
    peak = kept = 0
    for step in steps:
        peak = max(peak, kept + step.peak_bytes)
        kept += 0 if streamed else step.latent_bytes
    return max(peak, 2 * kept)  # joined at the end


@lru_cache(maxsize=256)
def _whole_peak(traced: TracedVae, shape: tuple[int, ...]) -> int:
    video = _video(traced, shape)
    module = traced.module  # made before counting begins: weights do not count
    return trace_peak(lambda: encode_whole(module, video)).peak_bytes


def _chunks(traced: TracedVae, frames: int, frames_per_chunk: int) -> list[int]:
    """Frames of each chunk."""
    engine = encode_view_of(traced.module).streaming_engine()
    fed: list[int] = []
    while sum(fed) < frames:
        fed.append(engine.take(sum(fed), frames_per_chunk, frames))
    return fed


@lru_cache(maxsize=256)
def _steps(
    traced: TracedVae, shape: tuple[int, ...], frames_per_chunk: int, streamed: bool
) -> tuple[_Step, ...]:
    parts = _read(traced, shape) if streamed else [_video(traced, shape)]
    live, steps = LiveBytes(), []
    with torch.inference_mode(False), live.active():
        stream = EncodeStream(traced.module, parts, shape[2])
        while not stream.finished:
            live.reset_peak()
            latents = stream.step(frames_per_chunk)
            steps.append(_Step(live.peak_bytes, 0 if latents is None else latents.nbytes))
            del latents
    return tuple(steps)


def _read(traced: TracedVae, shape: tuple[int, ...]) -> Iterator[Tensor]:
    whole = _video(traced, shape)
    return (part.clone() for part in torch.split(whole, traced.traits.temporal_ratio, 2))


def _video(traced: TracedVae, shape: tuple[int, ...]) -> Tensor:
    return torch.empty(shape, device="meta", dtype=getattr(torch, traced.dtype))
