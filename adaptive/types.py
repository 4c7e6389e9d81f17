"""The library's nouns: shapes, readings, traits, plans and reports.

Frozen values without behaviour beyond what follows from their fields; no torch, so that the service's API
process can plan. Sizes are bytes, times are seconds, and every field says its unit where it has one.
"""

from dataclasses import dataclass, replace
from enum import StrEnum
from math import ceil


class Strategy(StrEnum):
    """Name of a decode plan's rung; derived from its `Cut`, never stored beside it."""

    BATCHED = "batched"
    CHUNKED = "chunked"
    PER_FRAME = "per_frame"
    TILED = "tiled"  # one latent frame at a time, its picture in strips that are joined exactly
    APPROXIMATE_CHUNKED = "approximate_chunked"  # each chunk decoded as if it were a video of its own
    APPROXIMATE_TILED = "approximate_tiled"  # overlapping parts of the picture, decoded apart and blended

    @property
    def exact(self) -> bool:
        """Whether the pixels are those of one call."""
        return not self.value.startswith("approximate")


def _positive(owner: object, **values: int) -> None:
    for name, value in values.items():
        if value < 1:
            raise ValueError(f"{type(owner).__name__}.{name} must be at least 1, got {value}")


@dataclass(frozen=True, slots=True)
class SpatialTiles:
    """A picture cut into `rows` times `columns` parts; exact tiles are strips: one column."""

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
    """How many latent frames there are, and how many of them are decoded at a time."""

    latent_frames: int
    frames_per_chunk: int


@dataclass(frozen=True, slots=True)
class Cut:
    """How a decode is cut up: latent frames a chunk, parts of the picture, and whether they join exactly."""

    frames_per_chunk: int
    tiles: SpatialTiles = WHOLE_PICTURE
    exact: bool = True

    @property
    def order(self) -> tuple[bool, int, int]:
        """Sorts cuts as a decode falls back: smaller chunks, then more tiles, then what changes pixels."""
        return not self.exact, self.tiles.count, -self.frames_per_chunk

    def chunking(self, latent_frames: int) -> Chunking:
        """The same in time, for a video of `latent_frames`."""
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
    """Frames of video: count and size in pixels."""

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
    """What the planner must know of one VAE, without holding it.

    `temporal_ratio` video frames come from one latent frame; where `first_frame_alone`, the first latent
    frame gives a single video frame, so `frames = 1 + temporal_ratio * (latent_frames - 1)`. Where one call
    makes an attention mask over all pairs of latent positions, `mask_numbers` is how many numbers a pair
    takes.
    """

    family: str
    vae_class: str
    latent_channels: int
    spatial_ratio: int
    temporal_ratio: int
    first_frame_alone: bool
    exact_streaming: bool
    frames_independent: bool
    chunks_apart: bool = False  # some frames alone decode to about what they are within the video
    mask_numbers: float = 0.0

    def video_frames(self, latent_frames: int) -> int:
        """Video frames that `latent_frames` decode to."""
        if self.first_frame_alone:
            return 1 + self.temporal_ratio * (latent_frames - 1)
        return self.temporal_ratio * latent_frames

    def mask_bytes(self, shape: LatentShape, item_bytes: int) -> int:
        """Bytes of the attention mask that decoding latents of this shape in one call makes."""
        positions = shape.frames * shape.height * shape.width
        return ceil(shape.batch * positions**2 * self.mask_numbers * item_bytes)

    def latent_frames(self, video_frames: int) -> int:
        """Latent frames of a video; `ValueError` where the frame count is not one the VAE can make."""
        offset = 1 if self.first_frame_alone else 0
        if (video_frames - offset) % self.temporal_ratio or video_frames < 1:
            rule = f"{self.temporal_ratio}k{'+1' if offset else ''}"
            raise ValueError(f"{self.vae_class} makes {rule} frames, not {video_frames}")
        return (video_frames - offset) // self.temporal_ratio + offset

    def latent_shape(self, video: VideoShape, *, batch: int = 1) -> LatentShape:
        """Latent shape of a video; `ValueError` where its sizes are not multiples of `spatial_ratio`."""
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
    """One look at a device's memory.

    `free_bytes` is what a new allocation of this process can get: free on the device plus `reusable_bytes`
    that this process' allocator holds and can really hand out. `own_bytes` is what this process holds in all
    (context and reserved), `other_bytes` what everyone else holds.
    """

    device: str
    free_bytes: int
    total_bytes: int
    reusable_bytes: int
    own_bytes: int
    other_bytes: int
    source: str  # "nvml", "cuda", "host" or "scripted"


@dataclass(frozen=True, slots=True)
class PeakEstimate:
    """Memory a decode needs above weights and input.

    `live_bytes`: tensors alive at the worst moment, exact. `expected_bytes` and `upper_bytes`: with the
    learned residual (workspace, fragmentation, what lies outside torch), as median and as the bound that
    plans are made with. `host_bytes`: activations parked in host memory, where that is not the device's.
    `hoped_bytes`: where hardly any decode has shown yet what this one needs beyond its live bytes, what it
    gets along with if lucky.
    """

    live_bytes: int
    expected_bytes: int
    upper_bytes: int
    host_bytes: int = 0
    hoped_bytes: int | None = None

    @property
    def tentative(self) -> bool:
        """Whether hardly anything is known of decodes like this."""
        return self.hoped_bytes is not None

    def beside(self, kept_bytes: int) -> "PeakEstimate":
        """With as many bytes that are held all the time."""
        return replace(
            self,
            live_bytes=self.live_bytes + kept_bytes,
            expected_bytes=self.expected_bytes + kept_bytes,
            upper_bytes=self.upper_bytes + kept_bytes,
            hoped_bytes=None if self.hoped_bytes is None else self.hoped_bytes + kept_bytes,
        )


@dataclass(frozen=True, slots=True)
class MeasuredPeak:
    """What a decode really took above what was held when it began, in the parts that behave differently.

    `allocated_bytes`: tensors and operators' workspace. `fragmentation_bytes`: held by the allocator beyond
    them. `outside_bytes`: what the process grew by that the allocator cannot explain: kernels loaded lazily,
    on the CPU also what other threads hold.
    """

    allocated_bytes: int
    fragmentation_bytes: int = 0
    outside_bytes: int = 0

    @property
    def total_bytes(self) -> int:
        """All that must be free for a decode like this."""
        return self.allocated_bytes + self.fragmentation_bytes + self.outside_bytes


@dataclass(frozen=True, slots=True)
class DecodePlan:
    """How one decode will run, and why.

    `frames_per_chunk` latent frames travel through the decoder at a time; where even one is too large, its
    picture does so in `tiles`.
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
    reload_seconds: float = 0.0  # of `predicted_seconds`, what bringing them back takes afterwards

    def __post_init__(self) -> None:
        if not 1 <= self.frames_per_chunk <= self.latent_frames:
            raise ValueError(f"frames_per_chunk must be 1..{self.latent_frames}, got {self.frames_per_chunk}")

    @property
    def decode_seconds(self) -> float | None:
        """Predicted seconds of the decode alone."""
        return None if self.predicted_seconds is None else self.predicted_seconds - self.reload_seconds

    @property
    def cut(self) -> Cut:
        """How the decode is cut up."""
        return Cut(self.frames_per_chunk, self.tiles, self.exact)

    @property
    def strategy(self) -> Strategy:
        """The rung's name; a single latent frame is batched."""
        return self.cut.strategy(self.latent_frames)


def strategy_of(frames_per_chunk: int, latent_frames: int) -> Strategy:
    """Name of an exact rung of whole pictures: all frames at once, one at a time, or several."""
    return Cut(frames_per_chunk).strategy(latent_frames)


@dataclass(frozen=True, slots=True)
class DecodeReport:
    """What one decode did: the plan it started with, and what was measured."""

    plan: DecodePlan
    chunk_frames: tuple[int, ...]  # latent frames of each chunk that succeeded, in order
    frames_per_chunk: int  # smallest chunk size in force at any time: equals the plan's unless memory changed
    video_frames: int
    exact: bool
    predicted_peak_bytes: int
    measured_peak_bytes: (
        int | None
    )  # above what was held when decoding began; None where the device cannot tell
    seconds: float  # decoding only: time spent by the consumer of the frames is not counted
    retries: int  # chunks run again after an out-of-memory
    spills: int = 0  # chunks seen to overflow into host memory
    tiles: SpatialTiles = WHOLE_PICTURE  # the most parts of a picture at any time
    regret_seconds: float = 0.0  # what the best way that would have fitted had saved
    regret_detail: str = ""
    seam_score: float | None = None  # see `adaptive.seams`; None where every pixel is exact

    @property
    def strategy(self) -> Strategy:
        """The rung the decode really ran on: the smallest cut decides."""
        return Cut(self.frames_per_chunk, self.tiles, self.exact).strategy(self.plan.latent_frames)
