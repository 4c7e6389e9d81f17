"""Noticing that device memory overflows into host memory, where that happens instead of an out-of-memory.

Some drivers (Windows' and WSL's system memory fallback, unified memory) serve allocations beyond the card's
memory from the host's: nothing fails, but everything crawls (37.2 GB were once reported in use on a 24 GB
card, with a decode at half the speed of a frame at a time). Owns: the decision, from readings and times. Pure
arithmetic; must not know torch, drivers, decodes.
"""

from dataclasses import dataclass
from enum import StrEnum

from adaptive.types import MemoryReading

MIB = 2**20
# A driver that is full still tells a few MiB of free memory.
FULL_BYTES = 64 * MIB
# Moves of a process' own memory that are no decode's: handles, lazily loaded kernels.
GROWTH_BYTES = 64 * MIB
# Through PCIe a chunk takes some ten times as long; sharing the card with another program about twice.
SLOW_RATIO = 4.0
# A process that was stopped, or got no processor for a while, looks as slow, once: memory behind a bus stays
# there.
SLOW_IN_A_ROW = 2
# Below this a chunk's time says more about the machine's other business.
SHORTEST_SECONDS = 0.2


class SpillSign(StrEnum):
    """What gave it away."""

    BEYOND_CAPACITY = "beyond_capacity"  # this process holds more than the card has
    DRIVER_FULL = "driver_full"  # the driver had nothing left to give, and this process still got more
    SLOW = "slow"  # nearly nothing free, and chunk after chunk many times slower than before or predicted


@dataclass(frozen=True, slots=True)
class ChunkSpeed:
    """Seconds a latent frame: of the chunk just decoded, and of what is usual (None where nothing is
    known).
    """

    seconds: float
    seconds_a_frame: float
    usual_seconds_a_frame: float | None

    @property
    def ratio(self) -> float:
        """How many times slower than usual; 1 where nothing is usual yet, or the chunk was too short to
        tell.
        """
        if not self.usual_seconds_a_frame or self.seconds < SHORTEST_SECONDS:
            return 1.0
        return self.seconds_a_frame / self.usual_seconds_a_frame


def find_spill(before: MemoryReading, now: MemoryReading, speed: ChunkSpeed) -> SpillSign | None:
    """Whether the chunk decoded between two readings of one device looks as if it spilled into host memory:
    a sign from bytes is proof, `SLOW` is a suspicion.

    What the driver has left is the free bytes without those that this process' allocator holds. The host's
    own memory has nowhere to overflow to: for "cpu" there is no sign.
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
    """Watches one decode chunk by chunk, from the reading it was planned with (None: from its first chunk).

    `usual_seconds_a_frame` is predicted where it is known; the slowest chunk that did not spill counts, too.
    """

    def __init__(self, before: MemoryReading | None, usual_seconds_a_frame: float | None) -> None:
        self._before = before
        self._usual = usual_seconds_a_frame
        self._slow = 0  # chunks in a row
        self.paused = False  # a chunk was as slow as if it had spilled: the decode's time tells nothing

    def after_chunk(self, now: MemoryReading, seconds: float, frames: int) -> tuple[SpillSign, int] | None:
        """The sign of a spill in the chunk just decoded, and the bytes that were free when it began."""
        speed = ChunkSpeed(seconds, seconds / frames, self._usual)
        before, self._before = self._before or now, now
        sign = find_spill(before, now, speed)
        self._slow = self._slow + 1 if sign is SpillSign.SLOW else 0
        if sign is SpillSign.SLOW and self._slow < SLOW_IN_A_ROW:
            self.paused = True
            return None
        if sign is None:
            self._usual = max(self._usual or 0.0, speed.seconds_a_frame)
            return None
        return sign, before.free_bytes
