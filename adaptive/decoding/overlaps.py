"""Notes which decodes and encodes of this process run at the same time: they share one peak of memory.

Knows neither decodes nor memory.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from threading import Lock

_lock = Lock()
_running: list[Overlap] = []


@dataclass(eq=False, slots=True)
class Overlap:
    """Whether a call was alone so far."""

    alone: bool = True


@contextmanager
def noting_overlaps() -> Iterator[Overlap]:
    """Within the context a decode or encode runs; those that run at the same time are not `alone`."""
    own = Overlap()
    with _lock:
        _running.append(own)
        if len(_running) > 1:
            for each in _running:
                each.alone = False
    try:
        yield own
    finally:
        with _lock:
            _running.remove(own)
