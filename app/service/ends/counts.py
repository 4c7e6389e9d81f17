"""How often the workers of a service ended, and why: a file in the data folder that no restart sets back.

The service's parent writes it, the API process reads it for the metrics.
"""

import json
import logging
from collections.abc import Iterable
from pathlib import Path

from app.artifacts.whole_file import replace_text

log = logging.getLogger(__name__)

FILE = "worker_ends.json"
# Ends that are counted from zero for each device; others appear when they happen.
REASONS = ("worker_hung", "worker_crashed", "worker_stalled", "worker_killed", "out_of_memory_killer")
IN_ORDER = "worker_stopped"

Counts = dict[str, dict[str, int]]


class EndCounts:
    """The counts by device and reason."""

    def __init__(self, data_dir: Path, devices: Iterable[str]) -> None:
        self._path = data_dir / FILE
        self._counts = read_counts(data_dir)
        for device in devices:
            self._counts[device] = {**dict.fromkeys(REASONS, 0), **self._counts.get(device, {})}
        self._write()

    def note(self, device: str, reason: str) -> None:
        """Count an end, unless the worker was stopped in order."""
        if reason == IN_ORDER:
            return
        of_device = self._counts.setdefault(device, {})
        of_device[reason] = of_device.get(reason, 0) + 1
        self._write()

    def _write(self) -> None:
        try:
            replace_text(self._path, json.dumps(self._counts))
        except OSError as error:
            log.warning("worker_ends_not_written path=%s reason=%s", self._path, error)


def read_counts(data_dir: Path) -> Counts:
    """Return the counts of the service on this data folder; empty where there are none."""
    try:
        stored = json.loads((data_dir / FILE).read_text(encoding="utf-8"))
        return {str(device): {str(r): int(n) for r, n in of.items()} for device, of in stored.items()}
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, TypeError, AttributeError) as error:
        log.warning("worker_ends_unreadable reason=%s", error)
        return {}
