"""Waiting for another thread or process in tests: poll until a condition holds, or fail."""

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")
POLL_SECONDS = 0.03


def wait_for(
    look: Callable[[], T], seconds: float, explain: Callable[[], str] = str, *, every: float = POLL_SECONDS
) -> T:
    """Poll `look` and return its first true result; fail after `seconds`."""
    deadline = time.monotonic() + seconds
    while not (found := look()):
        assert time.monotonic() < deadline, f"nothing came within {seconds} s\n{explain()}"
        time.sleep(every)
    return found
