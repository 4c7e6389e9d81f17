"""Which models must be downloaded before a job of theirs can run, for a process that is asked often.

Looks at names and sizes of files on this machine; asks no hub. Must not know torch or HTTP.
"""

import threading
import time
from collections.abc import Callable, Mapping

from app.config import Settings
from app.models.downloads.download import needs_download
from app.models.entries import ModelEntry

LOOK_SECONDS = 5.0  # for which an answer is kept


class AwaitedModels:
    """Tells of a model whether it must be downloaded first. Thread-safe."""

    def __init__(
        self,
        settings: Settings,
        models: Mapping[str, ModelEntry],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._settings = settings
        self._models = models
        self._clock = clock
        self._lock = threading.Lock()
        self._seen: dict[str, tuple[float, bool]] = {}  # when, and what was seen

    def __call__(self, model: str) -> bool:
        """Whether the model must be downloaded first, at most `LOOK_SECONDS` ago; False if unknown."""
        entry = self._models.get(model)
        if entry is None:
            return False
        with self._lock:
            at, awaited = self._seen.get(model, (float("-inf"), False))
            if self._clock() - at >= LOOK_SECONDS:
                awaited = self._look(entry)
                self._seen[model] = self._clock(), awaited
            return awaited

    def _look(self, entry: ModelEntry) -> bool:
        try:
            return needs_download(entry, self._settings)
        except OSError:  # a folder that cannot be read: nobody knows when a job could run
            return True
