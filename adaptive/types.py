"""The library's values: shapes, readings, traits, plans and reports.

They are frozen, and compute nothing beyond what follows from their fields. They need no torch, so that the
service's API process can plan. Sizes are in bytes, times in seconds, and a field's name says its unit.

Longer than 300 lines because every room imports these values together, and most of them are made of others.
"""

from dataclasses import dataclass, replace
from enum import StrEnum
from math import ceil


class Strategy(StrEnum):
    """Name of a decode plan's rung. It is derived from the plan's `Cut`, never stored with it."""

    BATCHED = "batched"
    CHUNKED = "chunked"
    PER_FRAME = "per_frame"
    TILED = "tiled"  # one latent frame at a time, each picture in strips that join exactly
    APPROXIMATE_CHUNKED = "approximate_chunked"  # each chunk is decoded as a separate video
    APPROXIMATE_TILED = (
        "approximate_tiled"  # overlapping parts of the picture, decoded separately and blended
    )

    @property
    def exact(self) -> bool:
        """Whether the pixels are those of the batched decode."""
        return not self.value.startswith("approximate")


def _positive(owner: object, **values: int) -> None:
    for name, value in values.items():
        if value < 1:
            raise ValueError(f"{type(owner).__name__}.{name} must be at least 1, got {value}")


@dataclass(frozen=True, slots=True)
class SpatialTiles:
    """A picture cut into `rows` times `columns` parts. Exact tiles are strips, with one column."""

    rows: int = 1
    columns: int = 1

    def __post_init__(self) -> None:
        _positive(self, rows=self.rows, columns=self.columns)

    @property
    def count(self) -> int:
        """Number of parts."""
        return self.rows * self.columns


WHOLE_PICTURE = SpatialTiles()


@dataclass(frozen=True, slots=True)
class Chunking:
    """Latent frames of a video, and how many of them are decoded at a time."""

    latent_frames: int
    frames_per_chunk: int


@dataclass(frozen=True, slots=True)
class Cut:
    """How a decode is divided: latent frames a chunk, tiles of the picture, and whether it is exact."""

    frames_per_chunk: int
    tiles: SpatialTiles = WHOLE_PICTURE
    exact: bool = True

    @property
    def order(self) -> tuple[bool, int, int]:
        """Sort key of the fallback order: smaller chunks, then more tiles, then approximate cuts."""
        return not self.exact, self.tiles.count, -self.frames_per_chunk

    def chunking(self, latent_frames: int) -> Chunking:
        """The division in time of a video of `latent_frames`."""
        return Chunking(latent_frames, min(self.frames_per_chunk, latent_frames))

    def strategy(self, latent_frames: int) -> Strategy:
        """Name of the rung for a video of `latent_frames`."""
        if self.tiles.count > 1:
            return Strategy.TILED if self.exact else Strategy.APPROXIMATE_TILED
        if self.frames_per_chunk >= latent_frames:
            return Strategy.BATCHED
        if not self.exact:
            return Strategy.APPROXIMATE_CHUNKED
        return Strategy.PER_FRAME if self.frames_per_chunk == 1 else Strategy.CHUNKED


@dataclass(frozen=True, slots=True)
class VideoShape:
    """Shape of a video: number of frames, height and width in pixels."""

    frames: int
    height: int
    width: int

    def __post_init__(self) -> None:
        _positive(self, frames=self.frames, height=self.height, width=self.width)


@dataclass(frozen=True, slots=True)
class LatentShape:
    """Shape `[batch, channels, frames, height, width]` of a video latent, in latent frames and pixels."""

    batch: int
    channels: int
    frames: int
    height: int
    width: int

    def __post_init__(self) -> None:
        _positive(
            self,
            batch=self.batch,
            channels=self.channels,
            frames=self.frames,
            height=self.height,
            width=self.width,
        )

    @property
    def area(self) -> int:
        """Latent pixels of one frame over the whole batch."""
        return self.batch * self.height * self.width


@dataclass(frozen=True, slots=True)
class VaeTraits:
    """Shape rules and abilities of one VAE, for planning without the VAE itself.

    One latent frame decodes to `temporal_ratio` video frames. With `first_frame_alone` the first latent frame
    decodes to a single one, so `frames = 1 + temporal_ratio * (latent_frames - 1)`. `chunks_apart`: a chunk
    of several frames decoded as a separate video is close to the exact result. `mask_numbers` is the number
    of elements for each pair of latent positions in the attention mask of one call; 0 without such a mask.
    """

    family: str
    vae_class: str
    latent_channels: int
    spatial_ratio: int
    temporal_ratio: int
    first_frame_alone: bool
    exact_streaming: bool
    frames_independent: bool
    chunks_apart: bool = False
    mask_numbers: float = 0.0

    def video_frames(self, latent_frames: int) -> int:
        """Video frames that `latent_frames` decode to."""
        if self.first_frame_alone:
            return 1 + self.temporal_ratio * (latent_frames - 1)
        return self.temporal_ratio * latent_frames

    def mask_bytes(self, shape: LatentShape, item_bytes: int) -> int:
        """Bytes of the attention mask when latents of this shape are decoded in one call."""
        positions = shape.frames * shape.height * shape.width
        return ceil(shape.batch * positions**2 * self.mask_numbers * item_bytes)

    def latent_frames(self, video_frames: int) -> int:
        """Latent frames of a video. Raises `ValueError` for a frame count that the VAE cannot produce."""
        offset = 1 if self.first_frame_alone else 0
        if (video_frames - offset) % self.temporal_ratio or video_frames < 1:
            rule = f"{self.temporal_ratio}k{'+1' if offset else ''}"
            raise ValueError(
                f"{self.vae_class} makes {rule} frames, not {video_frames}; choose such a number"
            )
        return (video_frames - offset) // self.temporal_ratio + offset

    def latent_shape(self, video: VideoShape, *, batch: int = 1) -> LatentShape:
        """Latent shape of a video. Raises `ValueError` unless its sizes are multiples of `spatial_ratio`."""
        for name, value in (("height", video.height), ("width", video.width)):
            if value % self.spatial_ratio:
                raise ValueError(f"{name} must be a multiple of {self.spatial_ratio}, got {value}")
        return LatentShape(
            batch,
            self.latent_channels,
            self.latent_frames(video.frames),
            video.height // self.spatial_ratio,
            video.width // self.spatial_ratio,
        )


@dataclass(frozen=True, slots=True)
class MemoryReading:
    """A reading of a device's memory.

    `free_bytes` is what a new allocation of this process can get: the device's free memory plus the
    `reusable_bytes` that this process' allocator holds and can reuse. `own_bytes` is all memory of this
    process (context and reserved), `context_bytes` the part of it that no tensor can ever use, where the
    driver tells it, `other_bytes` that of all other processes. `split_bytes` are the unused
    parts of large blocks that the allocator has split. They serve requests up to their own sizes, so they are
    in neither `free_bytes` nor `reusable_bytes`.
    """

    device: str
    free_bytes: int
    total_bytes: int
    reusable_bytes: int
    own_bytes: int
    other_bytes: int
    source: str  # "nvml", "cuda" or another kind of device, "host" or "scripted"
    split_bytes: int = 0
    context_bytes: int = 0


@dataclass(frozen=True, slots=True)
class PeakEstimate:
    """Memory that a decode needs above weights and input.

    - `live_bytes`: tensors alive at the peak, exact.
    - `expected_bytes` and `upper_bytes`: with the learned margin (workspace, fragmentation and memory outside
      torch), as the median and as the bound that plans use.
    - `host_bytes`: activations parked in host memory, where the device has its own memory.
    - `hoped_bytes`: an optimistic value, as long as few decodes of this kind are known; else None.
    """

    live_bytes: int
    expected_bytes: int
    upper_bytes: int
    host_bytes: int = 0
    hoped_bytes: int | None = None

    @property
    def tentative(self) -> bool:
        """Whether few decodes of this kind are known."""
        return self.hoped_bytes is not None

    def beside(self, kept_bytes: int) -> "PeakEstimate":
        """The estimate plus `kept_bytes` that stay allocated during the whole decode."""
        return replace(
            self,
            live_bytes=self.live_bytes + kept_bytes,
            expected_bytes=self.expected_bytes + kept_bytes,
            upper_bytes=self.upper_bytes + kept_bytes,
            hoped_bytes=None if self.hoped_bytes is None else self.hoped_bytes + kept_bytes,
        )


@dataclass(frozen=True, slots=True)
class MeasuredPeak:
    """Measured peak of a decode above the memory in use when it began.

    `allocated_bytes`: tensors and workspace of operators. `fragmentation_bytes`: memory that the allocator
    holds beyond them. `outside_bytes`: growth of the process outside the allocator, such as lazily loaded
    kernels, and on the CPU also the memory of other threads. Not `complete`: the fragmentation is not known.
    """

    allocated_bytes: int
    fragmentation_bytes: int = 0
    outside_bytes: int = 0
    complete: bool = True

    @property
    def total_bytes(self) -> int:
        """Bytes that must be free for a decode like this."""
        return self.allocated_bytes + self.fragmentation_bytes + self.outside_bytes


@dataclass(frozen=True, slots=True)
class DecodePlan:
    """How one decode runs, and why.

    The decoder processes `frames_per_chunk` latent frames at a time. Where even one is too large, its picture
    is processed in `tiles`.
    """

    latent_frames: int
    frames_per_chunk: int
    exact: bool
    reason: str  # a stable snake_case code, e.g. "fastest_that_fits"; `detail` is the sentence with numbers
    detail: str
    predicted: PeakEstimate
    budget_bytes: int
    free_bytes: int
    predicted_seconds: float | None = None
    tiles: SpatialTiles = WHOLE_PICTURE
    dropped_bytes: int = 0  # idle weights that must leave the device before decoding begins
    reload_seconds: float = 0.0  # the part of `predicted_seconds` that reloads them afterwards

    def __post_init__(self) -> None:
        if not 1 <= self.frames_per_chunk <= self.latent_frames:
            raise ValueError(f"frames_per_chunk must be 1..{self.latent_frames}, got {self.frames_per_chunk}")

    @property
    def decode_seconds(self) -> float | None:
        """Predicted seconds of the decode, without reloading weights; None where not known."""
        return None if self.predicted_seconds is None else self.predicted_seconds - self.reload_seconds

    @property
    def cut(self) -> Cut:
        """Chunk size, tiles and exactness of the plan."""
        return Cut(self.frames_per_chunk, self.tiles, self.exact)

    @property
    def strategy(self) -> Strategy:
        """Name of the rung. A single latent frame is batched."""
        return self.cut.strategy(self.latent_frames)


def strategy_of(frames_per_chunk: int, latent_frames: int) -> Strategy:
    """Name of the exact rung without tiles for this chunk size."""
    return Cut(frames_per_chunk).strategy(latent_frames)


@dataclass(frozen=True, slots=True)
class DecodeReport:
    """Result of one decode: the plan it started with, and the measurements."""

    plan: DecodePlan
    chunk_frames: tuple[int, ...]  # latent frames of each chunk that succeeded, in order
    frames_per_chunk: int  # smallest chunk size used: the plan's unless memory changed
    video_frames: int
    exact: bool
    predicted_peak_bytes: int
    measured_peak_bytes: int | None  # above the memory in use at the start; None where it is not measured
    seconds: float  # of decoding, without the time that the consumer of the frames takes
    retries: int  # chunks decoded again after an out-of-memory
    spills: int = 0  # chunks that overflowed into host memory
    tiles: SpatialTiles = WHOLE_PICTURE  # the largest number of tiles used
    regret_seconds: float = 0.0  # saved by the fastest rung that would have fitted
    regret_detail: str = ""
    seam_score: float | None = None  # see `adaptive.stream.seams`; None where every pixel is exact

    @property
    def strategy(self) -> Strategy:
        """Name of the smallest rung that the decode used."""
        return Cut(self.frames_per_chunk, self.tiles, self.exact).strategy(self.plan.latent_frames)
