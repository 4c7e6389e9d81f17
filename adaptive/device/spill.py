"""Detects that device memory overflows into host memory instead of running out.

Some drivers (system memory fallback on Windows and WSL, unified memory) serve allocations beyond the card's
memory from host memory. Nothing fails, but the decode becomes very slow: one report shows 37.2 GB in use on a
24 GB card, at half the speed of decoding one frame at a time.

Owns the decision, from readings and times. Pure arithmetic; it does not know torch, drivers or decodes.
"""

from dataclasses import dataclass
from enum import StrEnum

from adaptive.types import MemoryReading

MIB = 2**20
# A driver without memory left still reports a few MiB as free.
FULL_BYTES = 64 * MIB
# Growth of a process' own memory that does not belong to a decode: handles, lazily loaded kernels.
GROWTH_BYTES = 64 * MIB
# A chunk in memory behind PCIe takes about ten times as long; on a card shared with another program, twice.
SLOW_RATIO = 4.0
# A process that was stopped or got no processor time looks as slow, but only for one chunk. A spill stays
# slow.
SLOW_IN_A_ROW = 2
# The time of a shorter chunk depends too much on other programs.
SHORTEST_SECONDS = 0.2


class SpillSign(StrEnum):
    """Evidence of a spill."""

    BEYOND_CAPACITY = "beyond_capacity"  # this process holds more than the card's total memory
    DRIVER_FULL = "driver_full"  # the driver had no free memory left, and this process still got more
    SLOW = "slow"  # almost no free memory, and chunks in a row many times slower than usual or predicted


@dataclass(frozen=True, slots=True)
class ChunkSpeed:
    """Speed of the last chunk, and the usual seconds a latent frame (None where they are not known)."""

    seconds: float
    seconds_a_frame: float
    usual_seconds_a_frame: float | None

    @property
    def ratio(self) -> float:
        """How many times slower than usual the chunk was; 1 if that is unknown or the chunk was too short."""
        if not self.usual_seconds_a_frame or self.seconds < SHORTEST_SECONDS:
            return 1.0
        return self.seconds_a_frame / self.usual_seconds_a_frame


def find_spill(before: MemoryReading, now: MemoryReading, speed: ChunkSpeed) -> SpillSign | None:
    """Sign that the chunk decoded between two readings of one device spilled into host memory, or None.

    `BEYOND_CAPACITY` and `DRIVER_FULL` are proof, `SLOW` is a suspicion. The driver's remaining memory is the
    free bytes without those that this process' allocator holds. On "cpu" the result is None, because host
    memory cannot overflow.
    """
    if now.device.startswith("cpu"):
        return None
    if now.own_bytes > now.total_bytes:
        return SpillSign.BEYOND_CAPACITY
    left_bytes = now.free_bytes - now.reusable_bytes
    was_left_bytes = before.free_bytes - before.reusable_bytes
    if left_bytes > FULL_BYTES:
        return None
    grown_bytes = now.own_bytes - before.own_bytes
    if grown_bytes > max(0, was_left_bytes) + GROWTH_BYTES:
        return SpillSign.DRIVER_FULL
    return SpillSign.SLOW if speed.ratio >= SLOW_RATIO else None


class SpillWatch:
    """Watches one decode chunk by chunk.

    `before` is the reading that the decode was planned with (None: the watch starts at its first chunk).
    `usual_seconds_a_frame` is the predicted time, if known; slower chunks without a spill raise it.
    """

    def __init__(self, before: MemoryReading | None, usual_seconds_a_frame: float | None) -> None:
        self._before = before
        self._usual = usual_seconds_a_frame
        self._slow_in_a_row = 0
        self.time_unreliable = False  # one chunk was suspiciously slow: do not learn from the decode's time

    def after_chunk(self, now: MemoryReading, seconds: float, frames: int) -> tuple[SpillSign, int] | None:
        """Sign of a spill in the last chunk, with the bytes that were free when it began; None if none."""
        speed = ChunkSpeed(seconds, seconds / frames, self._usual)
        before, self._before = self._before or now, now
        sign = find_spill(before, now, speed)
        self._slow_in_a_row = self._slow_in_a_row + 1 if sign is SpillSign.SLOW else 0
        if sign is SpillSign.SLOW and self._slow_in_a_row < SLOW_IN_A_ROW:
            self.time_unreliable = True
            return None
        if sign is None:
            self._usual = max(self._usual or 0.0, speed.seconds_a_frame)
            return None
        return sign, before.free_bytes
