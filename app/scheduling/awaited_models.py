"""Which models must be downloaded before a job of theirs can run, for a process that is asked often.

Looks at names and sizes of files on this machine, and at what the workers have loaded; asks no hub. Must not
know torch or HTTP.
"""

import logging
import threading
import time
from collections.abc import Callable, Iterable, Mapping

from app.config import Settings
from app.jobs import WorkerRow
from app.models.downloads.download import needs_download
from app.models.entries import ModelEntry

log = logging.getLogger(__name__)

LOOK_SECONDS = 5.0  # for which an answer is kept


class AwaitedModels:
    """Tells of a model whether it must be downloaded first. Thread-safe."""

    def __init__(
        self,
        settings: Settings,
        models: Mapping[str, ModelEntry],
        workers: Callable[[], Iterable[WorkerRow]],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._settings = settings
        self._models = models
        self._workers = workers
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
            if not needs_download(entry, self._settings):
                return False
        except OSError as error:  # a folder that this process cannot read
            log.warning("model_not_looked_up model=%s reason=%s", entry.name, error)
        # A worker may have another disk.
        return not any(worker.device.get("loaded_model") == entry.name for worker in self._workers())
