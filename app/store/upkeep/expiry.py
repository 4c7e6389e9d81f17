"""When leases that have run out may be acted on: not right after time has jumped.

A suspended machine, a stopped process, a database that did not answer or whose clock was set: afterwards all
leases seem to have run out at once, although their workers live and renew them within a heartbeat. The
database's time and this host's time since boot, which counts a suspension, show such a jump to whoever looks
at leases regularly. This file knows no SQL and no jobs.
"""

import time
from collections.abc import Callable

# A regular look comes at least this often; shorter gaps are no jump.
LONGEST_TURN_SECONDS = 5.0
# So many jumps in a row are no jumps: whoever looks is slow.
JUMPS_IN_A_ROW = 3


def since_boot() -> float:
    """Return seconds since boot, with those of a suspension where the system counts them."""
    clock = getattr(time, "CLOCK_BOOTTIME", None)
    return time.monotonic() if clock is None else time.clock_gettime(clock)


class ExpiryWatch:
    """Looks at the clocks at every turn of one process; safe to call from one thread at a time.

    Without `heartbeat_seconds` leases may be acted on at any time.
    """

    def __init__(
        self,
        heartbeat_seconds: float | None,
        *,
        lease_seconds: float,
        clock: Callable[[], float] = since_boot,
    ) -> None:
        self._heartbeat_seconds = heartbeat_seconds
        # What a live worker's lease outlasts is no jump.
        self._limit_seconds = max(lease_seconds / 2, LONGEST_TURN_SECONDS)
        self._clock = clock
        self._before: tuple[float, float] | None = None
        self._quiet_until = 0.0
        self._jumps = 0

    def may_requeue(self, database_now: float) -> bool:
        """Return whether expired leases may be acted on; `database_now` is the database's time in seconds.

        False at the first look and for a heartbeat after a jump of time.
        """
        if self._heartbeat_seconds is None:
            return True
        now = self._clock()
        jumped = self._has_jumped(now, database_now)
        self._before = (now, database_now)
        self._jumps = self._jumps + 1 if jumped else 0
        if jumped and self._jumps <= JUMPS_IN_A_ROW:
            self._quiet_until = now + self._heartbeat_seconds
        return now >= self._quiet_until

    def _has_jumped(self, now: float, database_now: float) -> bool:
        if self._before is None:
            return True
        gaps = (now - self._before[0], database_now - self._before[1])
        return max(gaps) > self._limit_seconds or min(gaps) < -self._limit_seconds
