"""Why a child process ended: its own fault, the kernel's out-of-memory killer, or a signal from outside.

The reasons are those of `app.attempts`.
"""

import signal
from collections.abc import Callable

from app.service.ends.oom_kills import OomKills, read_oom_kills
from app.service.parent_death import EXIT_DATABASE_UNAVAILABLE, EXIT_STALLED

HUNG = "worker_hung"  # the supervisor killed it: it sent no heartbeat

# Signals that a process brings about itself: an abort, or a fault that the processor or the kernel reports.
OWN_SIGNALS = frozenset(
    {
        signal.SIGABRT,
        signal.SIGBUS,
        signal.SIGFPE,
        signal.SIGILL,
        signal.SIGSEGV,
        signal.SIGSYS,
        signal.SIGTRAP,
        signal.SIGXCPU,
        signal.SIGXFSZ,
    }
)
REASON_OF_STATUS = {
    0: "worker_stopped",
    EXIT_DATABASE_UNAVAILABLE: "database_unavailable",
    EXIT_STALLED: "worker_stalled",
}


def reason_of(status: int, *, oom_killed: bool) -> str:
    """Return why a worker ended, by its exit status; a negative one is the number of a signal.

    `oom_killed`: the out-of-memory killer ended a process of this control group since the last look.
    """
    if status >= 0:
        return REASON_OF_STATUS.get(status, "worker_crashed")
    if -status in OWN_SIGNALS:
        return "worker_crashed"
    return "out_of_memory_killer" if oom_killed and -status == signal.SIGKILL else "worker_killed"


class OomWatch:
    """Says whether the count of kills has risen since the last look."""

    def __init__(self, read: Callable[[], OomKills | None] = read_oom_kills) -> None:
        self._read = read
        self._before = read()

    @property
    def last(self) -> OomKills | None:
        """The count at the last look."""
        return self._before

    def has_risen(self) -> bool:
        """Look at the count; return whether it is higher than at the last look."""
        before, self._before = self._before, self._read()
        if before is None or self._before is None or before.place != self._before.place:
            return False
        return self._before.count > before.count
