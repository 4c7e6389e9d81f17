"""Encoding video to latents in chunks: exact, and in memory that does not grow with the length of the video.

Owns the cutting of a video (a tensor, or parts as they are read) into what the VAE's arithmetic allows, one
encode's state, and the choice of its chunk size by the memory that is free. How latents come about is the
engine's business (see `adaptive.stream.engine`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from functools import lru_cache, partial
from typing import Any

import torch
from torch import Tensor

from adaptive.errors import DoesNotFit
from adaptive.families import family_of
from adaptive.planner import Policy, budget_of
from adaptive.probe import MemoryProbe, is_out_of_memory, open_probe
from adaptive.profile import TracedVae, dtype_name
from adaptive.residuals import Residuals
from adaptive.stream.engine import Engine, State
from adaptive.stream.placement import execution_device, wake, whole_calls
from adaptive.trace import trace_peak
from adaptive.types import strategy_of

_UNKNOWN_LENGTH = 2**62 + 1  # a number of frames of every VAE's usual form, 8k+1


def encode(
    vae: Any,
    video: Tensor,
    *,
    frames_per_chunk: int | None = None,
    posterior: str = "mode",
    **encode_kwargs: Any,
) -> Tensor:
    """Latents of `video` (`[B, C, F, H, W]` in -1..1, on any device): `[B, C, T, h, w]` on the VAE's device.

    `frames_per_chunk` video frames are encoded at a time; None is the VAE's own one call. `posterior`: "mode"
    gives the most likely latents, "parameters" the mean and log-variance as `[B, 2C, T, h, w]` (what
    diffusers' `DiagonalGaussianDistribution` takes; VAEs without variance, as Cosmos, give the same for
    both). Raises `ValueError` for a number of frames the VAE
    cannot encode and `UnsupportedVae` where chunks are asked of a VAE that cannot stream.
    """
    if frames_per_chunk is not None and frames_per_chunk < video.shape[2]:
        parts = stream_encode(
            vae, video, frames_per_chunk=frames_per_chunk, posterior=posterior, **encode_kwargs
        )
        return torch.cat(list(parts), 2)
    _traits(vae).latent_frames(video.shape[2])
    with torch.no_grad(), whole_calls(vae):
        parameters = family_of(vae).encode_whole(vae, video.to(execution_device(vae)), encode_kwargs)
    return _chosen(vae, parameters, posterior)


def stream_encode(
    vae: Any,
    video: Tensor | Iterable[Tensor],
    *,
    frames_per_chunk: int,
    posterior: str = "mode",
    **encode_kwargs: Any,
) -> Iterator[Tensor]:
    """Encode in chunks of about `frames_per_chunk` video frames; yields latents `[B, C, t, h, w]` in order.

    `video` is one tensor `[B, C, F, H, W]` or its parts, of any lengths, as they are read. Values,
    `posterior` and errors as in `encode`; a number of frames the VAE cannot encode is only known at the end.
    """
    if frames_per_chunk < 1:
        raise ValueError(f"frames_per_chunk must be at least 1, got {frames_per_chunk}")
    _chosen(vae, torch.empty(1, 2), posterior)
    engine = family_of(vae).encode_engine(vae, encode_kwargs)
    total = video.shape[2] if isinstance(video, Tensor) else _UNKNOWN_LENGTH
    parts = _Parts([video] if isinstance(video, Tensor) else video)
    cut = partial(engine.take, wanted=frames_per_chunk, total=total)
    return _encoded(vae, engine, parts, cut, posterior)


@dataclass(frozen=True, slots=True)
class EncodePlan:
    """How one encode will run: video frames at a time, and the bytes it was decided with."""

    video_frames: int
    frames_per_chunk: int
    predicted_peak_bytes: int
    budget_bytes: int
    free_bytes: int

    def as_json(self) -> dict[str, Any]:
        """The plan for a job's history."""
        return {"strategy": strategy_of(self.frames_per_chunk, self.video_frames).value, **asdict(self)}


class AdaptiveEncoder:
    """Encodes videos with one VAE in the memory that is free: the most frames at a time that fit.

    Of `policy` only the budget and the reserve count. Not for two threads at once.
    """

    def __init__(self, vae: Any, *, probe: MemoryProbe | None = None, policy: Policy | None = None) -> None:
        self._vae = vae
        self._device = execution_device(vae)
        self._probe = probe or open_probe(str(self._device))
        self._policy = policy or Policy()

    def plan(self, shape: tuple[int, ...], *, below: int | None = None) -> EncodePlan:
        """The plan for a video `[B, C, F, H, W]` now, with chunks smaller than `below` where that is given.

        `DoesNotFit` with the bytes of the smallest chunk where none fits.
        """
        self._probe.release()
        reading = self._probe.read()
        budget = budget_of(reading, self._policy)
        needed = 0
        for size in _chunk_sizes(shape[2], below):
            needed = self._needed_bytes(shape, size)
            if needed <= budget:
                return EncodePlan(shape[2], size, needed, budget, reading.free_bytes)
        raise DoesNotFit("encoding", needed_bytes=needed, budget_bytes=budget)

    def encode(
        self, video: Tensor, *, posterior: str = "mode", **encode_kwargs: Any
    ) -> tuple[Tensor, EncodePlan]:
        """Latents of `video` as `adaptive.encode` gives them, and the plan that led to them.

        An out-of-memory is followed by smaller chunks, and is raised as it is where there are none.
        """
        shape = tuple(video.shape)
        plan = self.plan(shape)
        while (latents := self._attempt(video, plan, posterior, encode_kwargs)) is None:
            plan = self.plan(shape, below=plan.frames_per_chunk)
        return latents, plan

    def _attempt(
        self, video: Tensor, plan: EncodePlan, posterior: str, encode_kwargs: dict[str, Any]
    ) -> Tensor | None:
        """None where it ran out of memory and smaller chunks are left; the failed call's tensors are gone by
        then.
        """
        chunk = None if plan.frames_per_chunk == plan.video_frames else plan.frames_per_chunk
        try:
            return encode(self._vae, video, frames_per_chunk=chunk, posterior=posterior, **encode_kwargs)
        except Exception as error:
            if plan.frames_per_chunk == 1 or not is_out_of_memory(error):
                raise
        return None

    def _needed_bytes(self, shape: tuple[int, ...], frames_per_chunk: int) -> int:
        dtype = dtype_name(self._vae.dtype)
        traced = TracedVae(type(self._vae), self._vae.config, dtype)
        live_bytes = _traced_bytes(traced, shape, frames_per_chunk)
        strategy = strategy_of(frames_per_chunk, shape[2])
        residuals = Residuals(str(self._device))
        return residuals.estimate(traced.traits.family, dtype, strategy, live_bytes).upper_bytes


def _chunk_sizes(frames: int, below: int | None) -> list[int]:
    """For each number of chunks the smallest that gets along with it, largest first."""
    sizes = {math.ceil(frames / chunks) for chunks in range(1, frames + 1)}
    return sorted((size for size in sizes if below is None or size < below), reverse=True)


@lru_cache(maxsize=256)
def _traced_bytes(traced: TracedVae, shape: tuple[int, ...], frames_per_chunk: int) -> int:
    """Peak live bytes of an encode with its latents, above weights and video."""
    video = torch.empty(shape, device="meta", dtype=getattr(torch, traced.dtype))
    chunk = None if frames_per_chunk == shape[2] else frames_per_chunk
    module = traced.module  # made before counting begins: weights do not count

    def run() -> Tensor:
        return encode(module, video, frames_per_chunk=chunk, posterior="parameters")

    return trace_peak(run).peak_bytes


def _encoded(
    vae: Any, engine: Engine, parts: _Parts, cut: Callable[[int], int], posterior: str
) -> Iterator[Tensor]:
    state: State = {}
    position = done = 0
    while True:
        chunk = parts.take(cut(position))
        position += chunk.shape[2]
        if parts.ended:
            expected = _traits(vae).latent_frames(position)
        wake(vae)
        device = execution_device(vae)
        with torch.no_grad(), whole_calls(vae):
            # Encoders that stream are causal: nothing is held back, so the chunk is the only limit needed.
            chunk = chunk.to(device)
            latents, state = engine.advance(state, chunk, limit=_UNKNOWN_LENGTH, ended=parts.ended)
        del chunk
        if latents is not None and latents.shape[2]:
            done += latents.shape[2]
            yield _chosen(vae, latents, posterior)
        del latents
        if parts.ended and done == expected:
            return


class _Parts:
    """A video read part by part, handed out in the lengths asked for; knows the end one part ahead."""

    def __init__(self, parts: Iterable[Tensor]) -> None:
        self._rest = iter(parts)
        self._next: Tensor | None = next(self._rest, None)
        if self._next is None:
            raise ValueError("the video has no frames")

    @property
    def ended(self) -> bool:
        return self._next is None or self._next.shape[2] == 0

    def take(self, frames: int) -> Tensor:
        """Up to `frames` frames; none once all have been handed out."""
        pieces: list[Tensor] = []
        wanted = frames
        while self._next is not None and wanted:
            piece = self._next[:, :, :wanted]
            wanted -= piece.shape[2]
            pieces.append(piece)
            self._next = self._next[:, :, piece.shape[2] :]
            if self._next.shape[2] == 0:
                self._last = self._next
                self._next = next(self._rest, None)
        if not pieces:
            return self._last
        return pieces[0] if len(pieces) == 1 else torch.cat(pieces, 2)


def _chosen(vae: Any, parameters: Tensor, posterior: str) -> Tensor:
    if posterior == "parameters" or (posterior == "mode" and not family_of(vae).has_variance):
        return parameters
    if posterior == "mode":
        return parameters.chunk(2, dim=1)[0].clone()
    raise ValueError(f"posterior must be 'mode' or 'parameters', got {posterior!r}")


def _traits(vae: Any) -> Any:
    return family_of(vae).traits(type(vae).__name__, vae.config)
