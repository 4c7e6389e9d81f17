"""Deciding how a decode runs: bytes in, plan and reason out. Pure arithmetic.

Owns: the policy, the ladder of rungs (chunk sizes) and the choice among them. Must not know: torch, devices,
jobs. The choice is the fastest rung that fits, by predicted seconds; among rungs of the same speed the
smallest.
"""

import math
from dataclasses import dataclass, replace

from adaptive.errors import DoesNotFit, UnsupportedVae
from adaptive.memory import MemoryProfile
from adaptive.placement import ComponentSize as ComponentSize
from adaptive.placement import Placement as Placement
from adaptive.placement import plan_weights as plan_weights
from adaptive.residuals import Residuals
from adaptive.types import (
    DecodePlan,
    LatentShape,
    MemoryReading,
    PeakEstimate,
    Strategy,
    VideoShape,
    strategy_of,
)

MIB = 2**20
RESERVE_BYTES = 256 * MIB
SAME_SPEED = 1.01


@dataclass(frozen=True, slots=True)
class Policy:
    """What a caller allows. A forced strategy or chunk size is used or refused, never ignored.

    `budget_bytes` caps what the decode may take even if more is free; `reserve_bytes` of the free memory are
    left to others.
    """

    strategy: str = "auto"  # or batched, chunked, per_frame
    frames_per_chunk: int | None = None
    exact_only: bool = True
    budget_bytes: int | None = None
    reserve_bytes: int = RESERVE_BYTES
    allow_cpu: bool = False

    def __post_init__(self) -> None:
        if self.strategy != "auto" and self.strategy not in set(Strategy):
            raise ValueError(f"strategy must be auto, batched, chunked or per_frame, got {self.strategy!r}")
        size = self.frames_per_chunk
        if size is not None and size < 1:
            raise ValueError(f"frames_per_chunk must be at least 1, got {size}")
        per_frame = self.strategy == Strategy.PER_FRAME
        if size is not None and (self.strategy == Strategy.BATCHED or (per_frame and size != 1)):
            raise ValueError(f"strategy {self.strategy} excludes frames_per_chunk {size}")
        for name, value in (("budget_bytes", self.budget_bytes), ("reserve_bytes", self.reserve_bytes)):
            if value is not None and value < 0:
                raise ValueError(f"{name} must not be negative, got {value}")

    @property
    def forced(self) -> bool:
        """Whether the rung is the caller's choice."""
        return self.strategy != "auto" or self.frames_per_chunk is not None


@dataclass(frozen=True, slots=True)
class SpeedModel:
    """Seconds of a decode: `work` a latent pixel and frame, plus `step` for each pass through the decoder.

    A pass costs kernel launches and, for chunk sizes below two, convolutions that no longer fill the device;
    a batched decode is one pass. `warmup_frames` latent frames enter before the first comes out, and are
    drained in as many extra.
    """

    work_seconds: float
    step_seconds: float
    drain_steps: int = 0

    def seconds(self, shape: LatentShape, frames_per_chunk: int) -> float:
        """Predicted seconds of one decode."""
        steps = math.ceil(shape.frames / frames_per_chunk)
        drain = 0 if steps == 1 else self.drain_steps
        return self.work_seconds * shape.area * shape.frames + self.step_seconds * (steps + drain)


@dataclass(frozen=True, slots=True)
class Rung:
    """One way to decode, with what it needs and whether it fits."""

    latent_frames: int
    frames_per_chunk: int
    predicted: PeakEstimate
    fits: bool
    predicted_seconds: float | None

    @property
    def strategy(self) -> Strategy:
        """The rung's name."""
        return strategy_of(self.frames_per_chunk, self.latent_frames)


@dataclass(frozen=True, slots=True)
class PlanInputs:
    """What is known beside shape, reading and policy; all optional.

    `speed` is a calibrated model (without one, larger chunks count as faster). `held_bytes` are the decode's
    own live bytes while it runs, already missing from the free memory. `kept_output_bytes` must stay free of
    streamed rungs for the video that the caller gathers.
    """

    residuals: Residuals | None = None
    speed: SpeedModel | None = None
    held_bytes: int = 0
    kept_output_bytes: int = 0
    largest_chunk: int | None = None


def budget_of(reading: MemoryReading, policy: Policy, held_bytes: int = 0) -> int:
    """Bytes a decode may take: free memory less the reserve, plus what it holds already, at most the policy's
    cap.
    """
    available = max(0, reading.free_bytes - policy.reserve_bytes) + held_bytes
    return available if policy.budget_bytes is None else min(available, policy.budget_bytes)


def chunk_sizes(profile: MemoryProfile, latent_frames: int, policy: Policy) -> tuple[int, ...]:
    """Chunk sizes worth considering, largest first: for each number of chunks the smallest that gets along
    with it.

    With seven latent frames, chunks of five and of four both make two passes; five would only take more
    memory. `UnsupportedVae` where the policy forces what this VAE cannot do.
    """
    sizes = {math.ceil(latent_frames / chunks) for chunks in range(1, latent_frames + 1)}
    if policy.frames_per_chunk is not None:
        sizes = {min(policy.frames_per_chunk, latent_frames)}
    elif policy.strategy == Strategy.BATCHED or not profile.can_stream:
        sizes = {latent_frames}
    elif policy.strategy == Strategy.PER_FRAME:
        sizes = {1}
    elif policy.strategy == Strategy.CHUNKED:
        sizes = {size for size in sizes if 1 < size < latent_frames} or {min(2, latent_frames)}
    streams = policy.strategy in (Strategy.CHUNKED, Strategy.PER_FRAME) or min(sizes) < latent_frames
    if streams and not profile.can_stream and latent_frames > 1:
        raise UnsupportedVae(profile.traits.vae_class, "exact decoding in chunks")
    return tuple(sorted(sizes, reverse=True))


def rungs(
    profile: MemoryProfile,
    shape: LatentShape,
    budget_bytes: int,
    policy: Policy,
    inputs: PlanInputs | None = None,
) -> tuple[Rung, ...]:
    """Every rung that the policy allows, fastest first, fitting or not."""
    inputs = inputs or PlanInputs()
    found = []
    for size in chunk_sizes(profile, shape.frames, policy):
        if inputs.largest_chunk is not None and size > inputs.largest_chunk:
            continue
        predicted = profile.estimate(shape, size, inputs.residuals)
        if size < shape.frames and inputs.kept_output_bytes:
            kept = inputs.kept_output_bytes
            predicted = PeakEstimate(
                predicted.live_bytes + kept, predicted.expected_bytes + kept, predicted.upper_bytes + kept
            )
        seconds = inputs.speed.seconds(shape, size) if inputs.speed else None
        found.append(Rung(shape.frames, size, predicted, predicted.upper_bytes <= budget_bytes, seconds))
    return tuple(sorted(found, key=lambda rung: (_rounded(rung.predicted_seconds), -rung.frames_per_chunk)))


def _rounded(seconds: float | None) -> float:
    """Order of magnitude in steps of one per cent, so that noise does not decide."""
    return 0.0 if not seconds else math.floor(math.log(seconds) / math.log(SAME_SPEED))


def plan_decode(
    profile: MemoryProfile,
    shape: LatentShape,
    reading: MemoryReading,
    policy: Policy | None = None,
    inputs: PlanInputs | None = None,
) -> DecodePlan:
    """The fastest allowed rung that fits. `DoesNotFit` with the bytes of the smallest where none does."""
    policy, inputs = policy or Policy(), inputs or PlanInputs()
    residuals = inputs.residuals or Residuals(reading.device)
    inputs = replace(inputs, residuals=residuals)
    budget = budget_of(reading, policy, inputs.held_bytes)
    ladder = rungs(profile, shape, budget, policy, inputs)
    chosen = next((rung for rung in ladder if rung.fits), None)
    if chosen is None:
        smallest = min(ladder, key=lambda rung: rung.predicted.upper_bytes, default=None)
        needed = smallest.predicted.upper_bytes if smallest else budget + 1
        name = smallest.strategy if smallest else policy.strategy
        raise DoesNotFit(f"{name} decoding", needed_bytes=needed, budget_bytes=budget)
    return DecodePlan(
        latent_frames=shape.frames,
        frames_per_chunk=chosen.frames_per_chunk,
        exact=True,
        reason=_reason(profile, policy, chosen, ladder),
        detail=_detail(chosen, ladder, budget, reading.free_bytes),
        predicted=chosen.predicted,
        budget_bytes=budget,
        free_bytes=reading.free_bytes,
        predicted_seconds=chosen.predicted_seconds,
    )


def _reason(profile: MemoryProfile, policy: Policy, chosen: Rung, ladder: tuple[Rung, ...]) -> str:
    if policy.forced:
        return "requested"
    if not profile.can_stream:
        return "only_strategy"
    return "fastest" if chosen is ladder[0] else "fastest_that_fits"


def _detail(chosen: Rung, ladder: tuple[Rung, ...], budget_bytes: int, free_bytes: int) -> str:
    text = (
        f"{_name(chosen)} needs at most {_mib(chosen.predicted.upper_bytes)} of {_mib(budget_bytes)} "
        f"({_mib(free_bytes)} free)"
    )
    faster = ladder[: ladder.index(chosen)]
    if faster:
        text += f"; {_name(faster[-1])} would need {_mib(faster[-1].predicted.upper_bytes)}"
    return text


def _name(rung: Rung) -> str:
    chunked = rung.strategy is Strategy.CHUNKED
    return f"{rung.strategy} ({rung.frames_per_chunk} latent frames)" if chunked else str(rung.strategy)


def _mib(size_bytes: int) -> str:
    return f"{size_bytes / MIB:,.0f} MiB"


def largest_shape_that_fits(
    profile: MemoryProfile,
    like: VideoShape,
    budget_bytes: int,
    policy: Policy | None = None,
    *,
    residuals: Residuals | None = None,
    size_multiple: int | None = None,
) -> VideoShape | None:
    """Largest video of `like`'s frame count and about its aspect that some allowed rung decodes in
    `budget_bytes`.
    """
    sizes = chunk_sizes(profile, profile.traits.latent_frames(like.frames), policy or Policy())
    return profile.largest_shape(
        budget_bytes,
        like,
        residuals=residuals,
        size_multiple=size_multiple,
        frames_per_chunk=min(sizes),
    )
