"""What a caller allows, and the cuts (chunk sizes and tiles) that remain.

Owns the policy and the cuts worth considering under it. Pure arithmetic; it does not know budgets or how a
cut is chosen.
"""

import math
from dataclasses import dataclass

from adaptive.errors import UnsupportedVae
from adaptive.memory.profile import MemoryProfile
from adaptive.tiles import strip_numbers, tile_grids
from adaptive.types import Cut, LatentShape, SpatialTiles, Strategy

RESERVE_BYTES = 256 * 2**20


@dataclass(frozen=True, slots=True)
class Policy:
    """What a caller allows. A forced strategy or chunk size is used or refused, never ignored.

    `budget_bytes` caps the memory of the decode even if more is free. `reserve_bytes` of the free memory stay
    free for other programs. With `exact_only=False`, approximate rungs are used where no exact one fits, or
    where `strategy` names one. With `require_finite`, a decode raises `NonFiniteValues` instead of passing on
    frames with NaN or infinite values. Raises `ValueError` for values that contradict each other.
    """

    strategy: str = "auto"  # or the name of a `Strategy`
    frames_per_chunk: int | None = None
    exact_only: bool = True
    budget_bytes: int | None = None
    reserve_bytes: int = RESERVE_BYTES
    allow_cpu: bool = False
    require_finite: bool = False

    def __post_init__(self) -> None:
        if self.strategy != "auto" and self.strategy not in set(Strategy):
            names = ", ".join(Strategy)
            raise ValueError(f"strategy must be auto or one of {names}, got {self.strategy!r}")
        if self.exact_only and self.strategy != "auto" and not Strategy(self.strategy).exact:
            raise ValueError(f"strategy {self.strategy} changes pixels: it must come with exact_only=False")
        size = self.frames_per_chunk
        if size is not None and size < 1:
            raise ValueError(f"frames_per_chunk must be at least 1, got {size}")
        without = (Strategy.BATCHED, Strategy.TILED, Strategy.APPROXIMATE_TILED)
        per_frame = self.strategy == Strategy.PER_FRAME
        if size is not None and (self.strategy in without or (per_frame and size != 1)):
            raise ValueError(
                f"strategy {self.strategy} excludes frames_per_chunk {size}: leave one of them out"
            )
        for name, value in (("budget_bytes", self.budget_bytes), ("reserve_bytes", self.reserve_bytes)):
            if value is not None and value < 0:
                raise ValueError(f"{name} must not be negative, got {value}")

    @property
    def forced(self) -> bool:
        """Whether the caller chose the strategy or the chunk size."""
        return self.strategy != "auto" or self.frames_per_chunk is not None


def chunk_sizes(profile: MemoryProfile, latent_frames: int, policy: Policy) -> tuple[int, ...]:
    """Chunk sizes worth considering, largest first: for each number of chunks, the smallest size that gives
    it.

    With seven latent frames, chunks of five and of four both make two passes; five would only take more
    memory. Raises `UnsupportedVae` where the policy forces what this VAE or this number of frames does not
    support.
    """
    refuse_one_chunk(profile.traits.vae_class, latent_frames, policy)
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


def refuse_one_chunk(vae_class: str, latent_frames: int, policy: Policy) -> None:
    """Raise `UnsupportedVae` if `chunked` is forced with chunks that hold all frames, which is batched
    decoding.

    A single latent frame is batched under every strategy.
    """
    size = policy.frames_per_chunk
    if policy.strategy == Strategy.CHUNKED and size is not None and size >= latent_frames > 1:
        wanted = f"chunked decoding of {latent_frames} latent frames in chunks of {size}"
        raise UnsupportedVae(
            vae_class, f"{wanted}: ask for fewer than {latent_frames} frames a chunk, or for batched"
        )


def cuts(profile: MemoryProfile, shape: LatentShape, policy: Policy) -> tuple[Cut, ...]:
    """Every cut that the policy allows: exact ones largest first, then exact tiles, then approximate ones.

    Raises `UnsupportedVae` where the policy forces a strategy that this VAE or this shape does not support.
    """
    named = None if policy.strategy == "auto" else Strategy(policy.strategy)
    found: list[Cut] = []
    if named is None or named in (Strategy.BATCHED, Strategy.CHUNKED, Strategy.PER_FRAME):
        found += [Cut(size) for size in chunk_sizes(profile, shape.frames, policy)]
    anything = not policy.forced
    if (anything or named is Strategy.TILED) and profile.tiled is not None:
        found += [Cut(1, SpatialTiles(rows)) for rows in strip_numbers(shape.height)]
    if not policy.exact_only:
        if anything or named is Strategy.APPROXIMATE_CHUNKED:
            found += _independent_chunks(profile, shape, policy)
        if anything or named is Strategy.APPROXIMATE_TILED:
            size = 1 if profile.can_stream else shape.frames
            found += [
                Cut(size, tiles, exact=False) for tiles in tile_grids(shape, profile.traits.spatial_ratio)
            ]
    if not found:
        raise UnsupportedVae(profile.traits.vae_class, f"{policy.strategy} decoding of this shape")
    return tuple(found)


def _independent_chunks(profile: MemoryProfile, shape: LatentShape, policy: Policy) -> list[Cut]:
    """Approximate cuts whose chunks are decoded as separate videos."""
    if not profile.traits.chunks_apart:
        return []
    sizes = {math.ceil(shape.frames / chunks) for chunks in range(2, shape.frames + 1)}
    if policy.frames_per_chunk is not None:
        sizes = {policy.frames_per_chunk} if policy.frames_per_chunk < shape.frames else set()
    return [Cut(size, exact=False) for size in sorted(sizes, reverse=True)]
