"""The process of one download: `python -m app.models.downloads`, started and ended by `download`.

Its argument is JSON: what to download, or only to plan. It prints a JSON object a line: `started`, `plan`,
then `progress` several times a second, then `done` or `failed`. Lives no longer than its parent.
"""

import json
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from app.jobs import Json
from app.models.downloads.planning import (
    DownloadFailed,
    DownloadPlan,
    Wanted,
    check_disk,
    failure_of,
    plan_as_json,
    plan_download,
)
from app.models.downloads.transfer import Transfer, ignore_interrupts, repository_lock
from app.service.parent_death import end_with_parent

LOOK_SECONDS = 0.2


def main(request: dict[str, Any]) -> None:
    """Do what the request asks and print how it goes."""
    wanted = Wanted(**request["wanted"])
    try:
        import huggingface_hub.hf_api  # noqa: F401  # which takes most of the start

        _tell("started", {})
        plan = plan_download(wanted)
        _tell("plan", {**plan_as_json(plan)})
        check_disk(plan)
        if not request["plan_only"]:
            _download(plan, float(request["pause_seconds"]))
        _tell("done", {"stored_bytes": plan.stored_bytes})
    except Exception as error:
        failed = error if isinstance(error, DownloadFailed) else failure_of(error, wanted)
        told = {"code": failed.code, "transient": failed.transient, "data": failed.data}
        _tell("failed", {"message": str(failed), **told})


def _download(plan: DownloadPlan, pause_seconds: float) -> None:
    while True:
        with repository_lock(plan.wanted) as locked:
            if locked:
                _transfer(plan, pause_seconds)
                return
        _tell("progress", {"done_bytes": plan.stored_bytes, "waits": True})
        time.sleep(LOOK_SECONDS)


def _transfer(plan: DownloadPlan, pause_seconds: float) -> None:
    transfer = Transfer(plan, pause_seconds=pause_seconds)
    transfer.start()
    _tell_until(plan, lambda: transfer.done)
    with ThreadPoolExecutor(1) as pool:  # the hub's client fetches the rest, which may be large
        finished = pool.submit(transfer.finish)
        _tell_until(plan, finished.done)
        finished.result()


def _tell_until(plan: DownloadPlan, is_over: Callable[[], bool]) -> None:
    while not is_over():
        _tell("progress", {"done_bytes": plan.stored_bytes, "waits": False})
        time.sleep(LOOK_SECONDS)


def _tell(what: str, data: Json) -> None:
    sys.stdout.write(json.dumps({what: data}) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    asked = json.loads(sys.argv[1])
    end_with_parent(asked["parent_pid"])
    ignore_interrupts()
    main(asked)
