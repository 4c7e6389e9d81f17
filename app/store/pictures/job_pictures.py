"""The pictures of jobs, from the request that brings them to their deletion.

They are published before their job is queued, outside any transaction. What is left of a crash in between is
swept when it is so old that no submission can still be under way. Must not know where pictures lie.
"""

import logging
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice

from app.artifacts.data_folder import DataFolder
from app.artifacts.pictures import PictureMissing, Pictures, new_key
from app.fields.keyframes import PICTURES
from app.store import queries
from app.store.database import Database
from app.store.database.refusals import refusals_named, words_of
from app.store.errors import (
    DataFolderUnusable,
    ImageMissing,
    ImageUnreadable,
    ResultExpired,
    StoreError,
    StoreUnavailable,
)
from app.store.intake import Submission
from app.store.rows import StoredPicture, fetch_job

log = logging.getLogger(__name__)
ORPHAN_SECONDS = 3600.0
# A submission that hung for this long is refused: its pictures may be swept soon.
LONGEST_SECONDS = ORPHAN_SECONDS / 2
SWEPT_AT_ONCE = 500
# Where it exists, the clock that goes on while the machine sleeps.
_CLOCK: int = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)


@dataclass(frozen=True, slots=True)
class Publication:
    """The pictures of submissions that are under way."""

    pictures: list[list[StoredPicture]]
    begun_at: float

    @property
    def keys(self) -> list[str]:
        """The keys of all of them."""
        return [picture.key for pictures in self.pictures for picture in pictures]

    def taken(self) -> list[list[StoredPicture]]:
        """Return the pictures of each submission. Raises `StoreUnavailable` if they may be swept soon."""
        seconds = time.clock_gettime(_CLOCK) - self.begun_at
        if seconds > LONGEST_SECONDS:
            raise StoreUnavailable(f"the submission took {seconds:.0f} s: send it again")
        return self.pictures


class JobPictures:
    """The pictures of the jobs in one database. `folder` is the data folder, if there is one."""

    def __init__(self, database: Database, pictures: Pictures, folder: DataFolder | None) -> None:
        self._database = database
        self._pictures = pictures
        self._folder = folder
        self._lock = threading.Lock()
        self._under_way: set[str] = set()

    @contextmanager
    def published(self, submissions: Sequence[Submission]) -> Iterator[Publication]:
        """Publish the pictures of submissions, for the body to store their jobs.

        Removes the pictures again if the body fails. Raises `StoreUnavailable` if they cannot be stored.
        """
        contents: dict[str, bytes] = {}
        publication = Publication([], time.clock_gettime(_CLOCK))
        for each in submissions:
            own = [
                (StoredPicture(new_key(), field, len(data)), data) for field, data in _by_field(each).items()
            ]
            publication.pictures.append([picture for picture, _ in own])
            contents |= {picture.key: data for picture, data in own}
        with self._lock:
            self._under_way |= contents.keys()
        try:
            with refusals_named():
                self._pictures.publish(contents)
            yield publication
            self._keep(publication.keys)
        except Exception as error:
            if self._database.refusals_are_final or not isinstance(error, StoreUnavailable):
                self.discard(publication.keys)
            raise
        finally:
            with self._lock:
                self._under_way -= contents.keys()

    def _keep(self, keys: Sequence[str]) -> None:
        """Keep pictures that jobs have. The sweep does what cannot be done now."""
        try:
            self._pictures.keep(keys)
        except OSError as error:
            log.warning("pictures_not_moved count=%d reason=%s", len(keys), words_of(error))

    def discard(self, keys: Sequence[str]) -> None:
        """Remove pictures that no job has. The sweep removes those that cannot be removed now."""
        try:
            self._pictures.remove(keys)
        except (OSError, StoreError) as error:
            log.warning("pictures_not_deleted count=%d reason=%s", len(keys), words_of(error))

    def image(self, job_id: str) -> bytes:
        """Return the job's image as it was uploaded.

        Raises `NoSuchJob`, `ResultExpired` if the image was deleted, `ImageMissing` if it was lost, or
        `ImageUnreadable`.
        """
        data = self._read(job_id, "image")
        if data is None:
            with self._database.reading() as connection:
                raise ResultExpired(fetch_job(connection, job_id).id)
        return data

    def last_image(self, job_id: str) -> bytes | None:
        """Return the job's last image as it was uploaded, or None if it has none. Otherwise as `image`."""
        return self._read(job_id, "last_image")

    def keyframes(self, job_id: str) -> list[bytes]:
        """Return the pictures of the job's key frames as they were uploaded. Otherwise as `image`."""
        fields = sorted(field for field in self._of(job_id) if field in PICTURES)
        read = (self._read(job_id, field) for field in fields)
        return [data for data in read if data is not None]

    def keyframe(self, job_id: str, number: int) -> bytes | None:
        """Return the picture of one key frame, or None if there is none. Otherwise as `image`."""
        return self._read(job_id, PICTURES[number]) if number < len(PICTURES) else None

    def _read(self, job_id: str, field: str) -> bytes | None:
        picture = self._of(job_id).get(field)
        if picture is None:
            return None
        try:
            data = self._pictures.read(picture.key)
        except PictureMissing:
            if field not in self._of(job_id):  # deleted since
                return None
            absence = None if self._folder is None else self._folder.absence()
            if self._folder is not None and absence is not None:
                raise DataFolderUnusable(self._folder.path, absence) from None
            raise ImageMissing(job_id, field, "missing from the data folder") from None
        except OSError as error:
            raise ImageUnreadable(job_id, error.strerror or str(error)) from error
        if len(data) != picture.bytes:
            raise ImageMissing(job_id, field, f"damaged, {len(data)} of its {picture.bytes} bytes are there")
        return data

    def remove(self, job_id: str) -> None:
        """Delete the pictures of a job whose row will say so next. Raises `OSError` if something stays."""
        self._pictures.remove([picture.key for picture in self._of(job_id).values()])

    def sweep(self) -> int:
        """Delete pictures that no job has and that no submission can still want; return their number."""
        count = 0
        with refusals_named():
            found = self._pictures.not_kept(ORPHAN_SECONDS)
            while some := list(islice(found, SWEPT_AT_ONCE)):
                # In this order: a submission is under way, or its job is in the table.
                with self._lock:
                    under_way = self._under_way.intersection(some)
                with self._database.reading() as connection:
                    used = queries.pictures_used(connection, some)
                self._pictures.keep(list(used))
                left = [key for key in some if key not in used and key not in under_way]
                self._pictures.remove(left)
                count += len(left)
        return count

    def _of(self, job_id: str) -> dict[str, StoredPicture]:
        with self._database.reading() as connection:
            return queries.pictures(connection, job_id)


def _by_field(submission: Submission) -> dict[str, bytes]:
    named = {"image": submission.image, "last_image": submission.last_image}
    named |= dict(zip(PICTURES, submission.keyframes, strict=False))
    return {name: data for name, data in named.items() if data is not None}
