"""Loops that run as long as their process does.

Owns what every such loop needs: a turn may fail in any way and the loop goes on, after a wait that grows; a
failure is one line in the log; the last successful turn and the number of failures can be asked for; and a
loop that cannot go on ends the process, so that whoever started the process sees it. Must not know what a
turn does.
"""

import logging
import os
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

log = logging.getLogger(__name__)

EXIT_BROKEN = 70  # EX_SOFTWARE of sysexits.h
RETRY_SECONDS = (0.5, 1.0, 2.0, 5.0)
SILENT_SECONDS = 60.0


@dataclass(frozen=True, slots=True)
class LoopState:
    """What a loop has done: seconds since its last successful turn, and the number of all failures.

    `silent_after_seconds`: a loop that has had no successful turn for so long counts as silent.
    """

    name: str
    last_turn_seconds: float
    failures: int
    silent_after_seconds: float

    @property
    def is_silent(self) -> bool:
        """Whether its last successful turn was too long ago."""
        return self.last_turn_seconds > self.silent_after_seconds

    def as_json(self) -> dict[str, object]:
        """The state as JSON. Reasons of failures stay in the log: they may name hosts and paths."""
        return {
            "name": self.name,
            "last_turn_seconds": round(self.last_turn_seconds, 3),
            "silent": self.is_silent,
            "failures": self.failures,
        }


class Loop:
    """Repeats `turn` on a thread of its own until it is stopped.

    `turn` returns True if it should be repeated at once; else the next one comes after `every_seconds`. After
    an exception the next one comes after a wait that grows to `retry_seconds`. `known` are the exceptions
    that need no traceback in the log. `is_fatal` says whether the loop cannot go on after an exception: then
    the process ends with `EXIT_BROKEN`. It also ends if anything that is not an `Exception` would end the
    thread.
    """

    def __init__(
        self,
        name: str,
        turn: Callable[[], bool | None],
        *,
        every_seconds: float,
        silent_seconds: float = SILENT_SECONDS,
        retry_seconds: float = RETRY_SECONDS[-1],
        known: tuple[type[Exception], ...] = (),
        is_fatal: Callable[[Exception], bool] = lambda _error: False,
    ) -> None:
        self.name = name
        self._turn = turn
        self._every_seconds = every_seconds
        self._silent_seconds = silent_seconds
        self._retry_seconds = retry_seconds
        self._known = known
        self._is_fatal = is_fatal
        self._stopping = threading.Event()
        self._last_turn_at = time.monotonic()
        self._failures = self._in_a_row = 0
        self._thread: threading.Thread | None = None

    @property
    def state(self) -> LoopState:
        """What the loop has done so far."""
        since = time.monotonic() - self._last_turn_at
        return LoopState(self.name, since, self._failures, self._silent_seconds)

    @property
    def stopping(self) -> bool:
        """Whether `stop` was called; for turns that take long."""
        return self._stopping.is_set()

    def start(self) -> "Loop":
        """Start the thread."""
        self._last_turn_at = time.monotonic()
        self._thread = threading.Thread(target=self._run, name=self.name, daemon=True)
        self._thread.start()
        return self

    def stop(self) -> None:
        """Let no other turn begin. Returns at once."""
        self._stopping.set()

    def join(self, seconds: float | None = None) -> None:
        """Wait for the turn under way to end, at most `seconds`."""
        if self._thread is not None:
            self._thread.join(seconds)

    def step(self) -> float:
        """Make one turn on the caller's thread; returns the seconds to wait before the next."""
        try:
            more = self._turn()
        except Exception as error:
            if self._is_fatal(error):
                self._end_process(error)
            return self._failed(error)
        except BaseException as error:
            self._end_process(error)
            raise
        self._succeeded()
        return 0.0 if more else self._every_seconds

    def _run(self) -> None:
        while not self._stopping.is_set():
            wait = self.step()
            if wait:
                self._stopping.wait(wait)

    def _succeeded(self) -> None:
        now = time.monotonic()
        if self._in_a_row:
            silent = now - self._last_turn_at
            log.warning("loop_resumed loop=%s failures=%d seconds=%.1f", self.name, self._in_a_row, silent)
        self._last_turn_at, self._in_a_row = now, 0

    def _failed(self, error: Exception) -> float:
        self._failures += 1
        self._in_a_row += 1
        count = self._in_a_row
        wait = min(self._retry_seconds, RETRY_SECONDS[min(count, len(RETRY_SECONDS)) - 1])
        wait = max(self._every_seconds, wait)
        if count & (count - 1) == 0:  # the 1st, 2nd, 4th, 8th ...: it may fail for hours
            level = logging.WARNING if isinstance(error, self._known) else logging.ERROR
            # The traceback of a fault that nobody expected, once.
            trace = error if level == logging.ERROR and count == 1 else None
            text = "loop_failed loop=%s failures=%d retry_in_seconds=%.1f reason=%s"
            log.log(level, text, self.name, count, wait, one_line(error), exc_info=trace)
        return wait

    def _end_process(self, error: BaseException) -> None:
        text = "loop_ended_process loop=%s status=%d reason=%s"
        log.critical(text, self.name, EXIT_BROKEN, one_line(error), exc_info=error)
        logging.shutdown()
        os._exit(EXIT_BROKEN)


def start_all(loops: Iterable[Loop]) -> None:
    """Start each loop."""
    for loop in loops:
        loop.start()


def stop_all(loops: Sequence[Loop], seconds: float) -> None:
    """Stop the loops, and wait for the turns under way to end: for all together at most `seconds`."""
    for loop in loops:
        loop.stop()
    deadline = time.monotonic() + seconds
    for loop in loops:
        loop.join(max(0.0, deadline - time.monotonic()))


def one_line(error: BaseException) -> str:
    """Return the error's name and text without line breaks."""
    return " ".join(f"{type(error).__name__}: {error}".split())
