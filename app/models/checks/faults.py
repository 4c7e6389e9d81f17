"""Why each model cannot be used: what its files show, or what the profiler met when it traced the model.

Looked at again at most every `RECHECK_SECONDS`, so a repaired folder is noticed without a restart. The
profiler's record counts until a file of the model changes.
"""

import json
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from app.artifacts.whole_file import replace_text
from app.config import Settings
from app.models import profiles
from app.models.checks.model_folder import check_model, signature_of
from app.models.components import ModelUnavailable
from app.models.downloads.download import needs_download
from app.models.downloads.known import known_refusal
from app.models.entries import ModelEntry

RECHECK_SECONDS = 2.0


@dataclass(frozen=True, slots=True)
class Fault:
    """Why a model cannot be used; `transient` if that may pass without a change of its files or entry."""

    reason: str
    transient: bool = False


def find_fault(entry: ModelEntry, settings: Settings, signature: str | None = None) -> Fault | None:
    """Look at the model's files, at what the hub last said and at the profiler's record.

    None if the model can be used, as far as they tell.
    """
    try:
        check_model(entry, settings)
    except ModelUnavailable as error:
        return Fault(str(error), error.transient)
    refusal = known_refusal(settings, entry)
    if refusal is not None and needs_download(entry, settings):
        return Fault(refusal)
    return _recorded(entry, settings, signature_of(entry, settings) if signature is None else signature)


def record_fault(entry: ModelEntry, settings: Settings, fault: Fault | None) -> None:
    """Keep what the profiler met, for the other processes; None removes it."""
    path = profiles.failure_path(settings, entry)
    if fault is None:
        path.unlink(missing_ok=True)
        return
    profiles.make_folder_of(path)
    signature = signature_of(entry, settings)
    document = {"reason": fault.reason, "transient": fault.transient, "signature": signature}
    replace_text(path, json.dumps(document))


def _recorded(entry: ModelEntry, settings: Settings, signature: str) -> Fault | None:
    try:
        document = json.loads(profiles.failure_path(settings, entry).read_text(encoding="utf-8"))
        if document["signature"] != signature:
            return None
        return Fault(str(document["reason"]), bool(document["transient"]))
    except (OSError, ValueError, KeyError, TypeError):  # none, or written by another version
        return None


class ModelFaults:
    """The faults of the configured models, for a process that asks often."""

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
        self._checked_at: dict[str, float] = {}
        self._found: dict[str, Fault | None] = {}

    def of(self, entry: ModelEntry) -> Fault | None:
        """The model's fault, at most `RECHECK_SECONDS` old; None if it can be used."""
        with self._lock:
            now = self._clock()
            checked_at = self._checked_at.get(entry.name)
            if checked_at is None or now - checked_at >= RECHECK_SECONDS:
                self._found[entry.name] = find_fault(entry, self._settings)
                self._checked_at[entry.name] = self._clock()
            return self._found[entry.name]

    def forget(self, entry: ModelEntry) -> None:
        """Look at the model anew the next time."""
        with self._lock:
            self._checked_at.pop(entry.name, None)

    def permanent(self) -> dict[str, str]:
        """The reason of each model that cannot be used until its files or its entry change."""
        found = {name: self.of(entry) for name, entry in self._models.items()}
        return {name: fault.reason for name, fault in found.items() if fault and not fault.transient}
