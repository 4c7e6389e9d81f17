"""Fetches the files of a plan into the hub client's cache, and goes on where a download broke off.

The hub's client keeps no part of a file when its process ends. So large files come by requests of our own
over its session, into `blobs/NAME.incomplete`; small files, names and links are left to `snapshot_download`.
Runs in a process of its own (`__main__`), which may be killed at any moment.
"""

import fcntl
import hashlib
import importlib
import logging
import os
import threading
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from app.models.downloads.cached import list_files, point_to
from app.models.downloads.planning import DownloadPlan, HubFile, Wanted
from app.models.hub import may_pass

log = logging.getLogger(__name__)

LARGE_BYTES = 2**20  # smaller files are left to the hub's client
# The hub sends files above this size by its own protocol only, which cannot go on after an interruption.
MOST_BYTES = 50 * 10**9
BLOCK_BYTES = 2**18
CONNECTIONS = 4
FRUITLESS_ATTEMPTS = 5  # in a row, each without a new byte


class BrokenFile(OSError):
    """The bytes that came are not those that the hub's list names."""


@contextmanager
def repository_lock(wanted: Wanted) -> Iterator[bool]:
    """Try to lock the repository against other downloads of Framefit; gives whether this process has it."""
    folder = wanted.repository.parent / ".locks" / wanted.repository.name
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "framefit.lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
        else:
            yield True


class _Ended(Exception):
    """Another file of the transfer has failed."""


class Transfer:
    """The transfer of one plan. `start` it, then look at it until it is `done`; `finish` raises its error."""

    def __init__(self, plan: DownloadPlan, *, pause_seconds: float = 1.0) -> None:
        self._plan = plan
        self._pause_seconds = pause_seconds
        self._pool = ThreadPoolExecutor(CONNECTIONS)
        self._large = [file for file in plan.contents if LARGE_BYTES <= file.size_bytes <= MOST_BYTES]
        self._futures: list[Future[None]] = []
        self._ended = threading.Event()  # a file has failed: the others stop

    def start(self) -> None:
        """Begin to fetch the large files."""
        (self._plan.wanted.repository / "blobs").mkdir(parents=True, exist_ok=True)
        self._futures = [self._pool.submit(self._fetch, file) for file in self._large]

    @property
    def done(self) -> bool:
        """Whether all large files are there, or one of them has failed."""
        failed = any(each.done() and each.exception() for each in self._futures)
        return failed or all(each.done() for each in self._futures)

    def finish(self) -> Path:
        """Fetch what is left, and name the revision; returns the model's folder. Raises the first error.

        Then nothing writes any more, so that another transfer may go on with the parts.
        """
        errors = [error for each in self._futures if each.done() and (error := each.exception())]
        if errors:
            self._ended.set()
            self._pool.shutdown(cancel_futures=True)
            raise errors[0]
        folder = self._linked()
        wanted = self._plan.wanted
        names = [file.path for file in self._plan.files]
        list_files(wanted.repository, self._plan.commit, wanted.variant, names, wanted.parts, wanted.only)
        point_to(wanted.repository, wanted.revision, self._plan.commit)
        return folder

    def _linked(self) -> Path:
        from huggingface_hub import snapshot_download

        names = [file.path for file in self._plan.files]
        attempt = 0
        while True:
            try:
                found = snapshot_download(
                    self._plan.wanted.source,
                    revision=self._plan.commit,
                    allow_patterns=names,
                    max_workers=CONNECTIONS,
                    tqdm_class=_silent_bar(),
                )
            except Exception as error:
                attempt += 1
                if attempt >= FRUITLESS_ATTEMPTS or not may_pass(error):
                    raise
                self._pause(attempt)
            else:
                return Path(found)

    def _fetch(self, file: HubFile) -> None:
        """Fetch a file; go on after each break, until `FRUITLESS_ATTEMPTS` in a row bring nothing."""
        blob = self._plan.wanted.repository / "blobs" / file.blob
        part = blob.with_name(f"{file.blob}.incomplete")
        fruitless = broken = 0
        while not blob.exists():
            before = _size(part)
            try:
                if before < file.size_bytes:
                    self._receive(file, part, before)
                _check(file, part)
                part.replace(blob)
            except BrokenFile:
                broken += 1
                part.unlink(missing_ok=True)
                if broken > 1:
                    raise
            except _Ended:
                raise
            except Exception as error:
                fruitless = 0 if _size(part) > before else fruitless + 1
                if fruitless >= FRUITLESS_ATTEMPTS or not may_pass(error):
                    raise
                log.warning("download_interrupted file=%s reason=%s", file.path, error)
                self._pause(fruitless)

    def _pause(self, attempts: int) -> None:
        self._ended.wait(self._pause_seconds * 2 ** min(attempts, 4))

    def _receive(self, file: HubFile, part: Path, at: int) -> None:
        """Append to `part` what comes from byte `at` on."""
        from huggingface_hub import constants, hf_hub_url

        client = _client()
        url = hf_hub_url(self._plan.wanted.source, file.path, revision=self._plan.commit)
        headers = {**client.build_hf_headers(library_name="framefit"), "Accept-Encoding": "identity"}
        if at:
            headers["Range"] = f"bytes={at}-"
        timeout = constants.HF_HUB_DOWNLOAD_TIMEOUT
        # The session takes `Authorization` off when it follows a redirect to another host.
        with client.get_session().stream("GET", url, headers=headers, timeout=timeout) as answer:
            client.hf_raise_for_status(answer)
            whole = answer.status_code != 206  # the server ignores ranges
            with part.open("wb" if whole else "ab", buffering=0) as out:
                for block in answer.iter_bytes(BLOCK_BYTES):
                    if self._ended.is_set():
                        raise _Ended
                    out.write(block)


def _check(file: HubFile, part: Path) -> None:
    found = _size(part)
    if found != file.size_bytes:
        raise BrokenFile(f"{file.path} should have {file.size_bytes:,} bytes and has {found:,}")
    with part.open("rb") as data:
        if file.sha256 is None:
            what, begun = "git id", hashlib.sha1(b"blob %d\0" % found, usedforsecurity=False)
        else:
            what, begun = "SHA-256", hashlib.sha256()
        digest = hashlib.file_digest(data, lambda: begun).hexdigest()
    if digest != (file.sha256 or file.blob):
        raise BrokenFile(f"{file.path} has come damaged: its {what} is not the one that the hub names")


def _size(path: Path) -> int:
    with suppress(OSError):
        return path.stat().st_size
    return 0


def _client() -> Any:
    """The public tools of the hub's client, which declare no types."""
    return importlib.import_module("huggingface_hub.utils")


def _silent_bar() -> Any:
    bar: Any = _client().tqdm

    class Silent(bar):  # type: ignore[misc]
        """A bar that shows nothing: progress is read from the disk."""

        def __init__(self, *args: Any, **options: Any) -> None:
            options.pop("name", None)
            super().__init__(*args, **{**options, "disable": True})

    return Silent


def ignore_interrupts() -> None:
    """Leave Ctrl-C in a terminal to the parent process, which ends this one."""
    import signal

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
