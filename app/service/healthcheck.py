"""The check of a container's health: `python -m app.service.healthcheck` exits with 1 and says what is wrong.

Healthy means: the API process answers and can do its work, the supervisor runs, and a worker works or starts.
A container whose workers all hang, or end again and again, is unhealthy; one that still loads is not. Only
the standard library is imported: the check runs every few seconds.
"""

import http.client
import json
import os
import sys
import time
from pathlib import Path

FILE = "workers.json"  # app.service.heartbeats writes it
LOCK_FILE = "service.lock"  # a supervisor has made it
TIMEOUT_SECONDS = 4.0
# The supervisor writes the file every five seconds; a database that does not answer may hold it up.
OLD_SECONDS = 60.0
USABLE = {"starting", "alive"}


def fault(port: int, data_dir: Path) -> str | None:
    """Return why the service on that port and data folder is unhealthy; None if it is healthy."""
    return _api_fault(port) or _workers_fault(data_dir / FILE)


def _api_fault(port: int) -> str | None:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=TIMEOUT_SECONDS)
    try:
        connection.request("GET", "/healthz")
        answer = connection.getresponse()
        body = answer.read().decode("utf-8", "replace")
    except (OSError, http.client.HTTPException) as error:
        return f"the API process does not answer: {error!r}"
    finally:
        connection.close()
    return None if answer.status == 200 else f"/healthz answers {answer.status}: {body}"


def _workers_fault(path: Path) -> str | None:
    try:
        published = json.loads(path.read_text(encoding="utf-8"))
        age, workers = time.monotonic() - published["at"], dict(published["workers"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        if not path.with_name(LOCK_FILE).exists():
            return None  # an API process without a supervisor, whose workers run elsewhere
        return f"the supervisor has not said what the workers do: {error!r}"
    if not 0 <= age <= OLD_SECONDS:
        return f"the supervisor does not run: it looked at its workers {age:.0f} s ago"
    if workers and not USABLE.intersection(workers.values()):
        return "no worker works: " + ", ".join(f"{one} is {state}" for one, state in workers.items())
    return None


def main() -> None:
    """Exit with 0 if the service is healthy, else with 1 and the reason."""
    port = int(os.environ.get("FRAMEFIT_PORT") or 8000)
    found = fault(port, Path(os.environ.get("FRAMEFIT_DATA_DIR") or "data"))
    sys.exit(found)


if __name__ == "__main__":
    main()
