"""The events of one adaptive decode, and its state while it runs.

Owns the data of events and the record of failed cuts. It does not know streams, probes, or how a cut is
chosen.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from adaptive.device.spill import SpillSign, SpillWatch
from adaptive.types import WHOLE_PICTURE, Cut, DecodePlan, MemoryReading

# The chunk size grows during a decode only if the larger chunk fits into this share of the free memory. Small
# changes in another program's use must not make the chunk size change back and forth.
GROWTH_SHARE = 0.8


@dataclass(frozen=True, slots=True)
class DecodeEvent:
    """An event of a decode. `kind` is plan, chunk, replan, oom, spill or fallback; `data` is JSON.

    An `oom` with `doubtful` is the first of some failures in a row that may have another cause than memory.
    """

    kind: str
    data: Mapping[str, Any]


def plan_data(plan: DecodePlan) -> dict[str, Any]:
    """Data of a plan event."""
    return {
        "strategy": plan.strategy.value,
        "frames_per_chunk": plan.frames_per_chunk,
        "tiles": {"rows": plan.tiles.rows, "columns": plan.tiles.columns},
        "exact": plan.exact,
        "reason": plan.reason,
        "detail": plan.detail,
        "predicted_peak_bytes": plan.predicted.expected_bytes,
        "upper_peak_bytes": plan.predicted.upper_bytes,
        "parked_host_bytes": plan.predicted.host_bytes,
        "free_bytes": plan.free_bytes,
        "budget_bytes": plan.budget_bytes,
        "predicted_seconds": plan.predicted_seconds,
        "dropped_bytes": plan.dropped_bytes,
    }


def spill_data(
    sign: SpillSign, before: int, after: int, reading: MemoryReading, seconds: float
) -> dict[str, Any]:
    """Data of a spill event, an overflow into host memory; `before` and `after` are latent frames a chunk."""
    return {
        "from": before,
        "to": after,
        "sign": sign.value,
        "own_bytes": reading.own_bytes,
        "free_bytes": reading.free_bytes,
        "total_bytes": reading.total_bytes,
        "seconds": seconds,
    }


def replan_data(before: Cut, after: Cut, reason: str, reading: MemoryReading) -> dict[str, Any]:
    """Data of a replan event, a change from the cut `before` to the cut `after`."""
    sizes = {"from": before.frames_per_chunk, "to": after.frames_per_chunk}
    tiles = {"from_tiles": before.tiles.count, "to_tiles": after.tiles.count}
    return {**sizes, **tiles, "reason": reason, "free_bytes": reading.free_bytes}


@dataclass(slots=True)
class DecodeRun:
    """State of one decode: its current cut, and what has happened so far."""

    plan: DecodePlan
    cut: Cut
    smallest: Cut  # of all cuts so far, the last one in the fallback order
    watch: SpillWatch
    total_video_frames: int  # of the finished video
    retries: int = 0
    spills: int = 0
    seconds: float = 0.0
    video_frames: int = 0
    failure: str = ""  # message of the last out-of-memory
    doubtful: BaseException | None = None  # the last failure, if it was not certainly an out-of-memory
    doubtful_failures: int = 0  # since the last frames
    suspected: list[tuple[Cut, int]] = field(default_factory=list)  # doubtful: the cut, and the bytes it had
    chunk_frames: list[int] = field(default_factory=list)
    # Free bytes when a cut failed. It is tried again only when clearly more is free.
    failed: dict[Cut, int] = field(default_factory=dict)
    failed_at_chunk: set[Cut] = field(default_factory=set)  # since the last chunk that succeeded
    exact: bool = True  # whether every pixel so far is exact
    seam_score: float | None = None

    def continue_with(self, cut: Cut) -> None:
        """Use `cut` from the next chunk on."""
        self.cut = cut
        self.smallest = max(self.smallest, cut, key=lambda each: each.order)

    def chunk_done(self, latent_frames: int, video_frames: int) -> None:
        """Record a chunk of `latent_frames` that gave `video_frames`."""
        if latent_frames:
            self.chunk_frames.append(latent_frames)
        self.video_frames += video_frames
        self.failed_at_chunk.clear()
        if video_frames or not self.exact:  # the failing layer may not have run in a chunk without frames
            self.doubtful, self.doubtful_failures = None, 0

    def may_follow(self, cut: Cut) -> bool:
        """Whether the decode may continue with `cut`.

        Independent chunks must start at the first frame: an exact decode cannot change to them later.
        """
        independent = not cut.exact and cut.tiles == WHOLE_PICTURE
        possible = not independent or not self.cut.exact or self.video_frames == 0
        return possible and cut not in self.failed_at_chunk

    def failed_lately(self, free_bytes: int) -> Cut | None:
        """The smallest cut that failed with about `free_bytes` free or more; None where none did."""
        failed = [cut for cut, free in self.failed.items() if free_bytes <= free / GROWTH_SHARE]
        return max(failed, key=lambda cut: cut.order) if failed else None


def chunk_data(run: DecodeRun, latent_frames: int, position: int, video_frames: int) -> dict[str, Any]:
    """Data of a chunk event: `latent_frames` went in, `video_frames` came out."""
    return {
        "latent_frames": latent_frames,
        "position": position,
        "latent_frames_total": run.plan.latent_frames,
        "video_frames": video_frames,
        "video_frames_done": run.video_frames,
        "frames_per_chunk": run.cut.frames_per_chunk,
        "tiles": run.cut.tiles.count,
        "seconds": run.seconds,
    }
