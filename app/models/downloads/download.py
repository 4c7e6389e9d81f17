"""Downloads a model in a child process, which is killed the moment the download is canceled.

What a killed download has received stays on the disk, and the next one goes on there. Knows neither jobs nor
the job table.
"""

import json
import logging
import os
import selectors
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from typing import Any

from app.config import Settings
from app.models.components import has_hub_id, local_files
from app.models.downloads import known
from app.models.downloads.cached import Snapshot, stored_snapshot
from app.models.downloads.planning import DownloadFailed, Wanted
from app.models.downloads.progress import DownloadProgress, Rate
from app.models.entries import ModelEntry

log = logging.getLogger(__name__)

POLL_SECONDS = 0.25  # the longest time until a canceled download stops
LOG_SECONDS = 10.0

OnProgress = Callable[[DownloadProgress], None]


class DownloadCanceled(Exception):
    """The download was stopped; what it received stays."""


def is_from_hub(entry: ModelEntry, settings: Settings) -> bool:
    """Whether the model is loaded from the hub's repository, on this machine or not."""
    if entry.is_builtin or entry.resolution is not None:
        return False
    return local_files(entry, settings) is None and has_hub_id(entry)


def needs_download(entry: ModelEntry, settings: Settings, only: str | None = None) -> bool:
    """Whether the model, or `only` that component, comes from the hub and is not here as a whole.

    Asks no hub.
    """
    return is_from_hub(entry, settings) and stored_snapshot(entry, only) is None


def download(
    entry: ModelEntry,
    settings: Settings,
    on_progress: OnProgress,
    is_canceled: Callable[[], bool],
    *,
    pause_seconds: float = 1.0,
    only: str | None = None,
) -> Snapshot:
    """Download the files of the model, or of the component `only`, that are missing; returns where all are.

    Calls `on_progress` a few times a second. `pause_seconds`: the first of the growing pauses after a broken
    connection. Raises `DownloadFailed`, and `DownloadCanceled` once `is_canceled` says so.
    """
    rate, total_bytes, began_bytes, logged_at = Rate(), 0, 0, time.monotonic()
    for message in _told(Wanted.by(entry, only), is_canceled, plan_only=False, pause_seconds=pause_seconds):
        now = time.monotonic()
        if plan := message.get("plan"):
            total_bytes = plan["total_bytes"]
            began_bytes = total_bytes - plan["missing_bytes"]
            if only is None:
                known.record_size(settings, entry, total_bytes, plan["blobs"])
            log.info(
                "download_started model=%s bytes=%d of=%d", entry.name, plan["missing_bytes"], total_bytes
            )
            on_progress(DownloadProgress(began_bytes, total_bytes))
        elif seen := message.get("progress"):
            received = 0 if seen["waits"] else max(0, seen["done_bytes"] - began_bytes)
            told = DownloadProgress(seen["done_bytes"], total_bytes, received, waits=seen["waits"])
            told = rate.measured(told, now)
            on_progress(told)
            if now - logged_at >= LOG_SECONDS:
                logged_at = now
                log.info("download_progress model=%s %s", entry.name, _fields(told))
        elif failed := message.get("failed"):
            raise _failure(settings, entry, failed)
        elif "done" in message:
            on_progress(DownloadProgress(total_bytes, total_bytes, max(0, total_bytes - began_bytes)))
    found = stored_snapshot(entry, only)
    if found is None:
        raise DownloadFailed(f"model {entry.name}: its files are not where the download put them")
    log.info("download_finished model=%s bytes=%d", entry.name, total_bytes - began_bytes)
    return found


def ask_size(
    entry: ModelEntry,
    settings: Settings,
    is_canceled: Callable[[], bool],
    on_started: Callable[[], None] = lambda: None,
) -> tuple[int, int]:
    """Ask the hub how many bytes the model has, and how many are missing. Raises as `download`.

    `on_started` is called when the hub is about to be asked.
    """
    plan: dict[str, Any] | None = None
    for message in _told(Wanted.by(entry), is_canceled, plan_only=True, pause_seconds=1.0):
        if "started" in message:
            on_started()
        elif "plan" in message:
            plan = message["plan"]
            known.record_size(settings, entry, plan["total_bytes"], plan["blobs"])
        elif failed := message.get("failed"):
            raise _failure(settings, entry, failed)
    assert plan is not None
    return plan["total_bytes"], plan["missing_bytes"]


def _failure(settings: Settings, entry: ModelEntry, failed: dict[str, Any]) -> DownloadFailed:
    reason, transient = str(failed["message"]), bool(failed["transient"])
    log.warning("download_failed model=%s transient=%s reason=%s", entry.name, transient, reason)
    if failed["code"] == "model_unavailable" and not transient:
        known.record_refusal(settings, entry, reason)
    message = f"model {entry.name} cannot be downloaded: {reason}"
    return DownloadFailed(message, code=failed["code"], transient=transient, **failed["data"])


def _fields(told: DownloadProgress) -> str:
    return " ".join(f"{name}={value}" for name, value in told.as_json().items())


def _told(
    wanted: Wanted, is_canceled: Callable[[], bool], *, plan_only: bool, pause_seconds: float
) -> Iterator[dict[str, Any]]:
    """The messages of the child process as they come; it is killed when the iteration ends."""
    request = {
        "wanted": asdict(wanted),
        "plan_only": plan_only,
        "pause_seconds": pause_seconds,
        "parent_pid": os.getpid(),
    }
    command = [sys.executable, "-m", "app.models.downloads", json.dumps(request)]
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE)
    try:
        ended = False
        for line in _lines(process, is_canceled):
            message: dict[str, Any] = json.loads(line)
            ended = ended or "done" in message or "failed" in message
            yield message
        if not ended:
            code = process.wait()
            raise DownloadFailed(f"its process ended with status {code}: see the log", transient=True)
    finally:
        process.kill()
        process.wait()
        assert process.stdout is not None
        process.stdout.close()


def _lines(process: "subprocess.Popen[bytes]", is_canceled: Callable[[], bool]) -> Iterator[bytes]:
    assert process.stdout is not None
    held = b""
    with selectors.DefaultSelector() as selector:
        selector.register(process.stdout, selectors.EVENT_READ)
        while True:
            if is_canceled():
                raise DownloadCanceled
            if not selector.select(POLL_SECONDS):
                continue
            block = os.read(process.stdout.fileno(), 65536)
            if not block:
                return
            *lines, held = (held + block).split(b"\n")
            yield from lines
