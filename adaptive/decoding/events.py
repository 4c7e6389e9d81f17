"""What happens in one adaptive decode: its events, and its state while it runs.

Owns: the shape of events' data and the memory of what has failed. Must not know: streams, probes, how to
decide.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from adaptive.device.spill import SpillSign, SpillWatch
from adaptive.types import WHOLE_PICTURE, Cut, DecodePlan, MemoryReading

# A larger chunk is taken in the middle of a decode only if it would fit into this share of the budget: a
# neighbour whose use swings a little must not make the chunk size swing with it.
GROWTH_SHARE = 0.8


@dataclass(frozen=True, slots=True)
class DecodeEvent:
    """Something that happened in a decode; `data` is JSON. Kinds: plan, chunk, replan, oom,
    spill, fallback."""

    kind: str
    data: Mapping[str, Any]


def plan_data(plan: DecodePlan) -> dict[str, Any]:
    """A plan as the data of its event."""
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
    """An overflow into host memory as the data of its event; `before` and `after` are latent frames a
    chunk.
    """
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
    """A change of the cut as the data of its event."""
    sizes = {"from": before.frames_per_chunk, "to": after.frames_per_chunk}
    tiles = {"from_tiles": before.tiles.count, "to_tiles": after.tiles.count}
    return {**sizes, **tiles, "reason": reason, "free_bytes": reading.free_bytes}


@dataclass(slots=True)
class DecodeRun:
    """What has happened so far in one decode."""

    plan: DecodePlan
    cut: Cut
    smallest: Cut  # the last of all cuts so far, in the order of falling back
    watch: SpillWatch
    retries: int = 0
    spills: int = 0
    seconds: float = 0.0
    video_frames: int = 0
    failure: str = ""  # what the last out-of-memory said
    chunk_frames: list[int] = field(default_factory=list)
    # Free bytes when a cut failed: it is tried again only once clearly more is free.
    failed: dict[Cut, int] = field(default_factory=dict)
    failed_here: set[Cut] = field(default_factory=set)  # since the last chunk that succeeded
    exact: bool = True  # every pixel so far
    seam_score: float | None = None

    def go_on_with(self, cut: Cut) -> None:
        """Cut the next chunk so."""
        self.cut = cut
        self.smallest = max(self.smallest, cut, key=lambda each: each.order)

    def chunk_done(self, latent_frames: int, video_frames: int) -> None:
        """A chunk was fed, and frames came out."""
        if latent_frames:
            self.chunk_frames.append(latent_frames)
        self.video_frames += video_frames
        self.failed_here.clear()

    def may_follow(self, cut: Cut) -> bool:
        """Whether the decode may go on with a cut: chunks apart can only be had from the first frame on."""
        apart = not cut.exact and cut.tiles == WHOLE_PICTURE
        return cut not in self.failed_here and (not apart or not self.cut.exact or self.video_frames == 0)

    def failed_lately(self, free_bytes: int) -> Cut | None:
        """The smallest cut that has failed with about this much memory; None where nothing has failed."""
        failed = [cut for cut, free in self.failed.items() if free_bytes <= free / GROWTH_SHARE]
        return max(failed, key=lambda cut: cut.order) if failed else None


def chunk_data(run: DecodeRun, latent_frames: int, position: int, video_frames: int) -> dict[str, Any]:
    """A chunk just decoded as the data of its event: `latent_frames` in, `video_frames` out."""
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
