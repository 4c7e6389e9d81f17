"""Asks the hub, before a job is queued, whether it gives the model: once a model, and again after a refusal.

A hub that does not answer in time keeps no job out: it may answer when the job runs.
"""

import os
import threading
import time
from collections.abc import Callable

from app.config import Settings
from app.models.downloads.download import DownloadCanceled, needs_download
from app.models.downloads.known import known_refusal, known_size
from app.models.downloads.planning import DownloadFailed, require_disk
from app.models.downloads.storage import missing_bytes
from app.models.entries import ModelEntry

ANSWER_SECONDS = 5.0  # once the process that asks has started, which takes seconds on a slow machine
START_SECONDS = 60.0
AGAIN_SECONDS = 60.0  # between two questions about a model whose answer did not come
REFUSED_AGAIN_SECONDS = 2.0  # the licence may have been accepted meanwhile

AskHub = Callable[[ModelEntry, Settings, Callable[[], bool], Callable[[], None]], object]


class HubAccess:
    """Whether the hub gives the models that are still to be downloaded. Thread-safe.

    `ask` is `app.models.downloads.download.ask_size`; None: nothing is asked.
    """

    def __init__(
        self, settings: Settings, ask: AskHub | None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._settings = settings
        self._ask = ask
        self._clock = clock
        self._lock = threading.Lock()
        self._asked_at: dict[str, float] = {}

    def check(self, entry: ModelEntry) -> bool:
        """Ask the hub if nothing is known; return whether it was asked.

        Raises `DownloadFailed` if the hub refuses the model, or if the disk has too little space for it.
        """
        if self._ask is None or os.environ.get("HF_HUB_OFFLINE") or not needs_download(entry, self._settings):
            return False
        with self._lock:
            refused = known_refusal(self._settings, entry) is not None
            if known_size(self._settings, entry) is not None and not refused:
                self._require_disk(entry)
                return False
            now, asked_at = self._clock(), self._asked_at.get(entry.name)
            pause = REFUSED_AGAIN_SECONDS if refused else AGAIN_SECONDS
            if asked_at is not None and now - asked_at < pause:
                return False
            self._asked_at[entry.name] = now
            answer = _Answer(self._clock, now + START_SECONDS)
            try:
                self._ask(entry, self._settings, answer.is_late, answer.begin)
            except DownloadCanceled:
                return True
            except DownloadFailed as refusal:
                if not refusal.transient:
                    raise
            return True

    def _require_disk(self, entry: ModelEntry) -> None:
        missing = missing_bytes(entry, self._settings)
        try:
            require_disk(entry.source, missing or 0)
        except DownloadFailed as full:
            message = f"model {entry.name} cannot be downloaded: {full}"
            raise DownloadFailed(message, code=full.code, transient=full.transient, **full.data) from None


class _Answer:
    """The time that an answer of the hub may take."""

    def __init__(self, clock: Callable[[], float], latest: float) -> None:
        self._clock = clock
        self._latest = latest

    def begin(self) -> None:
        """Count from now on: the process that asks has started."""
        self._latest = self._clock() + ANSWER_SECONDS

    def is_late(self) -> bool:
        return self._clock() > self._latest
