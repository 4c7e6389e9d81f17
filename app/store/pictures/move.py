"""Moves the pictures of an SQLite database of schema 0009 or older into files.

A picture's file is on the disk before its row goes, and each job is moved in a transaction: a process that
is killed has lost nothing, and the next start goes on with the jobs that are left. The database file keeps
its size; `VACUUM` makes it smaller.
"""

import logging
import shutil
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from sqlalchemy import TextClause, bindparam, text

from app.artifacts.data_folder import FULL_BYTES
from app.artifacts.picture_folder import PictureFolder
from app.artifacts.pictures import Pictures, new_key
from app.store.database import Database
from app.store.database.refusals import opening, place_of, refusals_named
from app.store.errors import CannotOpen
from app.store.intake import INSERT_PICTURE
from app.store.rows import StoredPicture
from app.store.transaction import Transaction

log = logging.getLogger(__name__)
BLOCK_BYTES = 4096  # what the file system adds to a file, at most
JOBS_AT_ONCE = 50
BYTES_AT_ONCE = 32 * 2**20
LOG_SECONDS = 5.0

HAS_BLOBS = text("select 1 from sqlite_master where type = 'table' and name = 'images'")
_BYTES = "length(data) + coalesce(length(last_data), 0)"
TOTAL = text(f"select count(*) as jobs, count(last_data) as second, coalesce(sum({_BYTES}), 0) from images")
NEXT = text(f"select job_id, {_BYTES} from images where job_id > :after order by job_id limit {JOBS_AT_ONCE}")
LOAD = text("select job_id, data, last_data from images where job_id in :ids").bindparams(
    bindparam("ids", expanding=True)
)
DELETE = text("delete from images where job_id = :job_id")
ANY = text("select 1 from images limit 1")
DROP = text("drop table images")


def move_blobs(database: Database, pictures: Pictures) -> None:
    """If pictures are files, move every picture of the table `images` into one, then drop the table.

    Raises `CannotOpen` if the disk of the files has too little space, or they cannot be written.
    """
    if not isinstance(pictures, PictureFolder):
        return
    with database.reading() as connection:
        if connection.execute(HAS_BLOBS).first() is None:
            return
    found = database.run(lambda tx: _rows(tx, TOTAL))
    jobs, second, size = found[0] if found else (0, 0, 0)
    if jobs:
        _require_room(database, pictures.folder, jobs, size + (jobs + second) * BLOCK_BYTES + FULL_BYTES)
    log.info("images_moving jobs=%d bytes=%d folder=%s", jobs, size, pictures.folder)
    done, told_at = 0, time.monotonic()
    with opening(database.url):
        for ids in _parts(database):
            done += _move(database, pictures, ids)
            if time.monotonic() - told_at > LOG_SECONDS:
                log.info("images_moving done=%d of=%d", done, jobs)
                told_at = time.monotonic()
        database.run(_drop)
    log.info("images_moved jobs=%d bytes=%d", done, size)


def _require_room(database: Database, folder: Path, jobs: int, needed_bytes: int) -> None:
    with refusals_named():
        free_bytes = shutil.disk_usage(folder.parent).free
    if free_bytes < needed_bytes:
        what = f"the images of {jobs:,} jobs are to be moved into {folder}"
        room = f"this needs {needed_bytes:,} bytes there, and {free_bytes:,} are free"
        raise CannotOpen(place_of(database.url), f"{what}: {room}", "free some, then start again")


def _parts(database: Database) -> Iterator[list[str]]:
    """Yield the ids of jobs whose pictures are in the table, so many as are loaded together."""
    last = ""
    while True:
        found = database.run(partial(_rows, query=NEXT, after=last))
        if not found:
            return
        part: list[str] = []
        size = 0
        for job_id, count in found:
            if part and size + count > BYTES_AT_ONCE:
                break
            part.append(job_id)
            size += count
        yield part
        last = part[-1]


def _move(database: Database, pictures: Pictures, ids: list[str]) -> int:
    """Move the pictures of some jobs; return how many jobs another process has not moved meanwhile."""
    contents: dict[str, bytes] = {}
    moved: list[tuple[str, StoredPicture]] = []
    for row in database.run(lambda tx: _rows(tx, LOAD, ids=ids)):
        for field, data in (("image", row.data), ("last_image", row.last_data)):
            if data is not None:
                picture = StoredPicture(new_key(), field, len(data))
                contents[picture.key] = bytes(data)
                moved.append((row.job_id, picture))
    pictures.publish(contents)
    mine = database.run(lambda tx: _point_to_files(tx, moved))
    pictures.keep([picture.key for job_id, picture in moved if job_id in mine])
    pictures.remove([picture.key for job_id, picture in moved if job_id not in mine])
    return len(mine)


def _point_to_files(tx: Transaction, moved: list[tuple[str, StoredPicture]]) -> set[str]:
    """Put the keys in the place of the blobs, as far as these are still there; return the jobs."""
    jobs = dict.fromkeys(job_id for job_id, _ in moved) if _has_blobs(tx) else {}
    mine = {job_id for job_id in jobs if tx.execute(DELETE, {"job_id": job_id}).rowcount}
    for job_id, picture in moved:
        if job_id in mine:
            tx.execute(INSERT_PICTURE, {"job_id": job_id, **asdict(picture)})
    return mine


def _drop(tx: Transaction) -> None:
    if _has_blobs(tx) and tx.execute(ANY).first() is None:
        tx.execute(DROP)


def _rows(tx: Transaction, query: TextClause, **parameters: Any) -> Sequence[Any]:
    """Return the query's rows; none if another process has moved all and dropped the table."""
    return tx.execute(query, parameters).all() if _has_blobs(tx) else []


def _has_blobs(tx: Transaction) -> bool:
    return tx.execute(HAS_BLOBS).first() is not None
