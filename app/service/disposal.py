"""Disposal: expired results, deleted jobs and old jobs leave the disk and the database.

Where the disk gets full, videos in other formats leave it, too.

One turn does a bounded amount of work, and any process may repeat it. Knows no SQL and no routes.
"""

import logging
import time
from collections.abc import Iterator
from pathlib import Path

from app.artifacts.converted_files import leave_free
from app.artifacts.local_folder import job_artifacts
from app.config import Settings
from app.store import JobStore

log = logging.getLogger(__name__)
SWEEP_SECONDS = 3600.0
SWEPT_AT_ONCE = 500
SPACE_SECONDS = 10.0


class Disposal:
    """Deletes what is due. Call `turn` again and again."""

    def __init__(self, settings: Settings, store: JobStore) -> None:
        self._jobs_dir = settings.jobs_dir
        self._job_ttl_seconds = settings.job_ttl_seconds
        self._store = store
        self._min_free_disk_bytes = settings.min_free_disk_bytes
        self._space_at = time.monotonic()
        self._sweep_at = time.monotonic()

    def turn(self) -> None:
        """Do what is due. Raises `StoreError` if the database refuses; nothing is lost by that."""
        if time.monotonic() >= self._sweep_at:
            self.sweep()
            self._sweep_at = time.monotonic() + SWEEP_SECONDS
        self.expire_results()
        self.erase_deleted()
        self._store.drop_erased_bytes()
        if time.monotonic() >= self._space_at:
            self.make_space()
            self._space_at = time.monotonic() + SPACE_SECONDS

    def make_space(self) -> None:
        """Delete converted videos before the disk is so full that work is refused."""
        deleted = leave_free(self._jobs_dir, 2 * self._min_free_disk_bytes)
        if deleted:
            log.warning("converted_videos_deleted count=%d reason=disk_full", deleted)

    def expire_results(self) -> None:
        """Mark results whose time is over, and delete those marked a while ago."""
        for job_id in self._store.expire_results(self._remove_files):
            log.info("result_expired job_id=%s", job_id)

    def erase_deleted(self) -> None:
        """Erase deleted jobs that have ended, and remove old jobs."""
        if self._job_ttl_seconds is not None:
            for job_id in self._store.remove_old_jobs(self._job_ttl_seconds):
                log.info("job_removed job_id=%s", job_id)
        for job_id in self._store.erase_deleted(self._remove_files):
            log.info("job_erased job_id=%s", job_id)

    def sweep(self) -> None:
        """Delete folders of jobs that must have none, and pictures without a job.

        A worker without its lease may have made a folder late. A folder of no known job stays, because it may
        belong to another database.
        """
        unknown = 0
        for names in _names(self._jobs_dir):
            gone, unheard_of = self._store.without_files(names)
            unknown += len(unheard_of)
            for job_id in gone:
                try:
                    self._remove_files(job_id)
                except OSError as error:
                    log.warning("files_not_deleted job_id=%s reason=%s", job_id, error)
                else:
                    log.warning("leftover_files_deleted job_id=%s", job_id)
        self._store.sweep_pictures()
        if unknown:
            log.warning("folders_of_unknown_jobs count=%d folder=%s", unknown, self._jobs_dir)

    def _remove_files(self, job_id: str) -> None:
        # This removes names only: a response that is reading the video can finish.
        job_artifacts(self._jobs_dir, job_id).remove()


def _names(folder: Path) -> Iterator[list[str]]:
    """Yield the folder's names that could be ids, some at a time."""
    try:
        names = [path.name for path in folder.iterdir() if path.name.isascii() and path.name.isalnum()]
    except FileNotFoundError:
        return
    for first in range(0, len(names), SWEPT_AT_ONCE):
        yield names[first : first + SWEPT_AT_ONCE]
