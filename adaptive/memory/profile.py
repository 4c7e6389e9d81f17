"""How much memory a VAE's decode needs at any shape and chunk size, computed from a few traced numbers.

Owns `MemoryProfile`. `adaptive.memory.profile_trace` makes one for each VAE configuration and dtype; it is
stored as JSON, so that a process without torch plans in microseconds. This module does not know torch,
devices or policies.

For decoders without spatial attention the traced bytes behave as follows, measured on real configurations
(the attention mask over all pairs of positions, which two families make, is counted separately):

- They are proportional to latent height x width x batch, except at the borders of padded copies (a few tenths
  of a per cent at usual sizes).
- Batched bytes are affine in latent frames, beyond the first few.
- Streamed bytes grow with latent frames until every layer's state is full, then stay constant. From there
  they are affine in the chunk size.
- Activations that a layer sweep parks in host memory grow with the length of the video without limit.
"""

import json
import math
from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, Self

from adaptive.memory.margins import LearnedMargins as LearnedMargins
from adaptive.tiles import largest_tile, strip_count
from adaptive.types import Cut, LatentShape, PeakEstimate, VaeTraits

FORMAT = 3
ITEM_BYTES = {"float64": 8, "float32": 4, "float16": 2, "bfloat16": 2}


@dataclass(frozen=True, slots=True)
class Curve:
    """Bytes a latent pixel at increasing latent frame counts. `values` may be computed on access."""

    frames: tuple[int, ...]
    values: Sequence[float]

    def __post_init__(self) -> None:
        if not self.frames or list(self.frames) != sorted(set(self.frames)):
            raise ValueError(f"Curve.frames must rise and not be empty, got {self.frames}")
        if len(self.frames) != len(self.values):
            raise ValueError(f"Curve has {len(self.frames)} frame counts and {len(self.values)} values")

    def line(self, frames: float) -> float:
        """Value at `frames`, interpolated linearly; beyond the last point, extrapolated from the last two."""
        right = min(bisect_left(self.frames, frames), len(self.frames) - 1)
        if right == 0 or self.frames[right] == frames:
            return self.values[right]
        low, high = self.frames[right - 1], self.frames[right]
        return _line(low, self.values[right - 1], high, self.values[right], frames)

    def step(self, frames: float) -> float:
        """Value of the next point at or above `frames`, or of the last point.

        For bytes that grow with the frame count this never underestimates between points.
        """
        return self.values[min(bisect_left(self.frames, frames), len(self.frames) - 1)]


def _line(x0: float, y0: float, x1: float, y1: float, x: float) -> float:
    return y0 + (y1 - y0) * (x - x0) / (x1 - x0)


@dataclass(frozen=True, slots=True)
class TileCosts:
    """Bytes of a decode of one latent frame at a time whose later layers process the picture in strips.

    `head`: peak a latent pixel while the earlier layers process the whole picture. `base`: bytes a latent
    pixel that are held while strips are decoded. `strip`: bytes that a strip adds, a latent pixel of the
    strip including the `halo` latent rows that it needs from each neighbour.
    """

    halo: float
    head: Curve
    base: Curve
    strip: Curve

    def live_bytes(self, shape: LatentShape, rows: int) -> int:
        """Peak live bytes in `rows` strips."""
        neighbours = min(2, strip_count(shape.height, rows) - 1)
        extent = min(shape.height, math.ceil(shape.height / rows) + self.halo * neighbours)
        frames = shape.frames
        strip = self.base.step(frames) * shape.height + self.strip.step(frames) * extent
        return math.ceil(max(self.head.step(frames) * shape.height, strip) * shape.width * shape.batch)


@dataclass(frozen=True, slots=True)
class SweepCosts:
    """Host memory of a layer sweep in bytes a latent pixel, by chunk size in latent frames.

    `together`: peak of working and parked activations where both use the same memory, as on the CPU.
    `parked`: peak of the parked activations alone, which the host needs when another device decodes.
    """

    together: Mapping[int, Curve]
    parked: Mapping[int, Curve]


@dataclass(frozen=True, slots=True, eq=False)  # compared by identity, because `_cached_bytes` caches by it
class MemoryProfile:
    """Traced memory of one VAE configuration in one dtype ("float64", "float32", "float16" or "bfloat16").

    `batched` is the one-call decode with its output. `streamed` maps a chunk size in latent frames to the
    peak of a streamed decode whose consumer keeps no frame; it is empty where the VAE cannot stream exactly.
    `tiled` is set where the VAE can decode in strips of a picture. `sweep` is set where streaming parks
    activations in host memory, which `streamed` does not include.
    """

    traits: VaeTraits
    dtype: str
    config_digest: str
    batched: Curve
    streamed: Mapping[int, Curve]
    tiled: TileCosts | None = None
    sweep: SweepCosts | None = None

    @property
    def item_bytes(self) -> int:
        """Bytes of one element in this dtype."""
        return ITEM_BYTES[self.dtype]

    @property
    def can_stream(self) -> bool:
        """Whether the VAE can be decoded in chunks with the same pixels."""
        return bool(self.streamed)

    def live_bytes(self, shape: LatentShape, frames_per_chunk: int, *, on_host: bool = False) -> int:
        """Peak bytes of tensors above weights and input, within 2 % of the real run.

        `on_host`: the CPU decodes, where activations parked in host memory count too. Raises `ValueError`
        for chunks of a VAE that cannot stream.
        """
        if frames_per_chunk < 1:
            raise ValueError(f"frames_per_chunk must be at least 1, got {frames_per_chunk}")
        if frames_per_chunk >= shape.frames:
            mask_bytes = self.traits.mask_bytes(shape, self.item_bytes)
            return max(math.ceil(self.batched.line(shape.frames) * shape.area), mask_bytes)
        if not self.can_stream:
            raise ValueError(f"{self.traits.vae_class} cannot be decoded in chunks")
        if on_host and self.sweep is not None:
            return math.ceil(_growing(self.sweep.together, shape.frames, frames_per_chunk) * shape.area)
        return math.ceil(self._streamed_at(shape.frames, frames_per_chunk) * shape.area)

    def parked_bytes(self, shape: LatentShape, cut: Cut) -> int:
        """Host memory for parked activations when a device other than the CPU decodes."""
        if self.sweep is None or not cut.exact or cut.frames_per_chunk >= shape.frames:
            return 0
        return math.ceil(_growing(self.sweep.parked, shape.frames, cut.frames_per_chunk) * shape.area)

    def cut_bytes(self, shape: LatentShape, cut: Cut, *, on_host: bool = False) -> int:
        """`live_bytes` of any cut. `ValueError` where this VAE does not support the cut."""
        return _cached_bytes(self, shape, cut, on_host)

    def _cut_bytes(self, shape: LatentShape, cut: Cut, on_host: bool) -> int:
        if cut.tiles.count == 1:
            frames = shape.frames if cut.exact else min(cut.frames_per_chunk, shape.frames)
            return self.live_bytes(replace(shape, frames=frames), cut.frames_per_chunk, on_host=on_host)
        if not cut.exact:
            return self._approximate_bytes(shape, cut)
        if self.tiled is None:
            raise ValueError(f"{self.traits.vae_class} cannot be decoded in exact tiles")
        return self.tiled.live_bytes(shape, cut.tiles.rows)

    def _approximate_bytes(self, shape: LatentShape, cut: Cut) -> int:
        """Bytes of the whole video plus the largest tile: tiles are decoded one by one, as smaller videos."""
        height, width = largest_tile(shape, cut.tiles, self.traits.spatial_ratio)
        tile = replace(shape, height=height, width=width)
        return self.output_bytes(shape) + self.live_bytes(tile, cut.frames_per_chunk)

    def _streamed_at(self, frames: int, chunk: int) -> float:
        """Bytes a latent pixel at any chunk size, interpolated between the traced sizes next to it: the
        smaller at this length, the larger at the length with as many chunks.
        """
        sizes = sorted(self.streamed)
        if chunk in self.streamed or len(sizes) == 1:
            nearest = chunk if chunk in self.streamed else sizes[0]
            return self.streamed[nearest].step(frames)
        right = min(max(bisect_left(sizes, chunk), 1), len(sizes) - 1)
        low, high = sizes[right - 1], sizes[right]
        # Bytes jump when the first full chunk is finished, at a length that depends on the chunk size. The
        # factor 1.25 reads both curves beyond that jump.
        below = self.streamed[low].step(1.25 * frames + 1)
        above = self.streamed[high].step(1.25 * frames * high / chunk + 1)
        return _line(low, below, high, above, chunk)

    def output_bytes(self, shape: LatentShape) -> int:
        """Bytes of the whole decoded video with three channels, in this dtype."""
        pixels = shape.area * self.traits.spatial_ratio**2
        return 3 * self.traits.video_frames(shape.frames) * pixels * self.item_bytes

    def estimate(
        self, latent_shape: LatentShape, frames_per_chunk: int, residuals: LearnedMargins | None = None
    ) -> PeakEstimate:
        """Live, expected and upper bytes on the device of `residuals`; None: a CPU with nothing learned."""
        return self.estimate_cut(latent_shape, Cut(frames_per_chunk), residuals)

    def estimate_cut(
        self, latent_shape: LatentShape, cut: Cut, residuals: LearnedMargins | None = None
    ) -> PeakEstimate:
        """`estimate` of any cut."""
        residuals = residuals or LearnedMargins()
        live = self.cut_bytes(latent_shape, cut, on_host=residuals.on_host)
        frames = latent_shape.frames
        known_by = self.traits.family, self.dtype, cut.strategy(frames)
        estimate = residuals.estimate(*known_by, live, cut.chunking(frames))
        if residuals.on_host or self.sweep is None:
            return estimate
        return replace(estimate, host_bytes=self.parked_bytes(latent_shape, cut))

    def to_json(self) -> dict[str, Any]:
        """JSON values; the inverse is `from_json`."""
        return {
            "format": FORMAT,
            "traits": asdict(self.traits),
            "dtype": self.dtype,
            "config_digest": self.config_digest,
            "batched": _points(self.batched),
            "streamed": _curves_json(self.streamed),
            "tiled": self.tiled and _tiled_json(self.tiled),
            "sweep": self.sweep
            and {"together": _curves_json(self.sweep.together), "parked": _curves_json(self.sweep.parked)},
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """The inverse of `to_json`; `ValueError` for another format."""
        if data.get("format") != FORMAT:
            raise ValueError(f"memory profile format {data.get('format')!r} is not {FORMAT}")
        return cls(
            traits=VaeTraits(**data["traits"]),
            dtype=data["dtype"],
            config_digest=data["config_digest"],
            batched=_curve(data["batched"]),
            streamed=_curves(data["streamed"]),
            tiled=_tiled(data["tiled"]),
            sweep=_sweep(data["sweep"]),
        )

    def save(self, path: Path) -> None:
        """Write to `path`, atomically."""
        draft = path.with_name(path.name + ".new")
        draft.write_text(json.dumps(self.to_json()))
        draft.replace(path)

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read what `save` wrote; `OSError` or `ValueError` where that is impossible."""
        return cls.from_json(json.loads(path.read_text()))


@lru_cache(maxsize=8192)
def _cached_bytes(profile: MemoryProfile, shape: LatentShape, cut: Cut, on_host: bool) -> int:
    """Cached: a request needs the same cuts several times, and clients often ask for the same sizes."""
    return profile._cut_bytes(shape, cut, on_host)


def _growing(curves: Mapping[int, Curve], frames: int, chunk: int) -> float:
    """Bytes a latent pixel from curves that grow with the video's length, one for each traced chunk size."""
    sizes = sorted(curves)
    if chunk in curves or len(sizes) == 1:
        return curves[chunk if chunk in curves else sizes[0]].line(frames)
    right = min(max(bisect_left(sizes, chunk), 1), len(sizes) - 1)
    low, high = sizes[right - 1], sizes[right]
    return _line(low, curves[low].line(frames), high, curves[high].line(frames), chunk)


def _points(curve: Curve) -> list[list[float]]:
    return [[frames, value] for frames, value in zip(curve.frames, curve.values, strict=True)]


def _curve(points: Iterable[Iterable[float]]) -> Curve:
    frames, values = zip(*points, strict=True)
    return Curve(tuple(map(int, frames)), tuple(map(float, values)))


def _curves_json(curves: Mapping[int, Curve]) -> dict[str, Any]:
    return {str(size): _points(curve) for size, curve in curves.items()}


def _curves(data: Mapping[str, Any]) -> dict[int, Curve]:
    return {int(size): _curve(points) for size, points in data.items()}


def _sweep(data: Mapping[str, Any] | None) -> SweepCosts | None:
    return None if data is None else SweepCosts(_curves(data["together"]), _curves(data["parked"]))


def _tiled_json(costs: TileCosts) -> dict[str, Any]:
    return {"halo": costs.halo, **{name: _points(getattr(costs, name)) for name in ("head", "base", "strip")}}


def _tiled(data: Mapping[str, Any] | None) -> TileCosts | None:
    if data is None:
        return None
    return TileCosts(data["halo"], *(_curve(data[name]) for name in ("head", "base", "strip")))
