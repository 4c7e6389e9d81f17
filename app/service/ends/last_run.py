"""How the service's last run ended, from a file in the data folder that each run keeps.

The file says whether the run ended in order, how many unclean stops there were so far, and how many processes
the out-of-memory killer had ended when the run last looked.
"""

import json
import logging
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from app.artifacts.whole_file import replace_text
from app.attempts import Stop
from app.service.ends.oom_kills import OomKills

log = logging.getLogger(__name__)

FILE = "last_run.json"


@dataclass(frozen=True, slots=True)
class LastRun:
    """What the file says. `stops` are unclean stops that may be a job's doing."""

    running: bool = False
    stops: int = 0
    oom_kills: OomKills | None = None


@dataclass(frozen=True, slots=True)
class End:
    """Why the last run ended, for its jobs: a reason of `app.attempts`, and which stop it was."""

    reason: str
    stop: Stop | None = None


def end_of(last: LastRun, now: OomKills | None, instance: str) -> End:
    """Return why the last run of the service with that instance id ended.

    If this machine runs on as before and its out-of-memory killer has ended nothing, the service was killed
    by a signal.
    """
    if not last.running:
        return End("worker_stopped")
    if last.oom_kills is not None and last.oom_kills == now:
        return End("service_killed")
    return End("service_restarted", Stop(instance, last.stops + 1))


class RunRecord:
    """The file of this run."""

    def __init__(self, data_dir: Path) -> None:
        self._path = data_dir / FILE
        self._run = LastRun()

    def begin(self, instance: str, oom_kills: OomKills | None) -> End:
        """Return how the last run ended, and note that this one has begun."""
        last = self._read()
        end = end_of(last, oom_kills, instance)
        stops = last.stops if end.stop is None else end.stop.number
        self._write(LastRun(running=True, stops=stops, oom_kills=oom_kills))
        if last.running:
            log.warning("service_was_stopped reason=%s", end.reason)
        return end

    def note(self, oom_kills: OomKills | None) -> None:
        """Note the count of kills if it has changed."""
        if oom_kills != self._run.oom_kills:
            self._write(replace(self._run, oom_kills=oom_kills))

    def end(self) -> None:
        """Note that this run ends in order."""
        self._write(replace(self._run, running=False))

    def _read(self) -> LastRun:
        try:
            stored: dict[str, Any] = json.loads(self._path.read_text(encoding="utf-8"))
            kills = stored["oom_kills"]
            return LastRun(
                bool(stored["running"]), int(stored["stops"]), None if kills is None else OomKills(**kills)
            )
        except FileNotFoundError:
            return LastRun(running=True)  # of an earlier version, or none at all
        except (OSError, ValueError, TypeError, KeyError) as error:
            log.warning("last_run_unreadable path=%s reason=%s", self._path, error)
            return LastRun(running=True)

    def _write(self, run: LastRun) -> None:
        self._run = run
        try:
            replace_text(self._path, json.dumps(asdict(run)))
        except OSError as error:  # the next start then knows less
            log.warning("last_run_not_written path=%s reason=%s", self._path, error)
