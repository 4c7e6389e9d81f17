"""How tests wait for what another thread or process does: look again until it is there, or fail."""

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")
POLL_SECONDS = 0.03


def wait_for(
    look: Callable[[], T], seconds: float, explain: Callable[[], str] = str, *, every: float = POLL_SECONDS
) -> T:
    """What `look` gives once that is true, as a condition or as something found; fails after `seconds`."""
    deadline = time.monotonic() + seconds
    while not (found := look()):
        assert time.monotonic() < deadline, f"nothing came within {seconds} s\n{explain()}"
        time.sleep(every)
    return found
