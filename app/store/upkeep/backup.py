"""A consistent copy of an SQLite database while services use it, the check of one, and the files it names."""

import json
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy import URL

from app.store.database import HEAD_REVISION
from app.store.database.sqlite import sqlite_path
from app.store.errors import StoreUnavailable

__all__ = ["HEAD_REVISION", "DatabaseCopy", "copy_database", "inspect_copy", "sqlite_file"]

WAIT_SECONDS = 15.0
PICTURES = """
    select key from job_pictures p join jobs j on j.id = p.job_id where not j.expired and j.deleted_at is null
"""


@dataclass(frozen=True, slots=True)
class DatabaseCopy:
    """What is in a copied database: its schema's revision, its jobs, and the files that they name.

    The files' paths are relative to the data folder. `pictures` are keys.
    """

    revision: str
    jobs: int
    named_files: tuple[str, ...]
    pictures: tuple[str, ...]


def sqlite_file(url: URL) -> Path | None:
    """Return the file of an SQLite database; None for another kind of database."""
    return sqlite_path(url) if url.get_backend_name() == "sqlite" else None


def copy_database(source: Path, target: Path) -> DatabaseCopy:
    """Copy the database with SQLite's backup interface, and check the copy.

    The copy is the database at one moment; services go on reading and writing. Raises `StoreUnavailable`.
    """
    with (
        _refusals_named(source),
        closing(_read_only(source)) as original,
        closing(sqlite3.connect(target)) as copy,
    ):
        original.backup(copy)  # in one step: a copy in parts begins anew with each write of others
        copy.execute("pragma journal_mode = delete")  # one file, without a write-ahead log beside it
    return inspect_copy(target)


def inspect_copy(path: Path) -> DatabaseCopy:
    """Check every page of a database that nobody uses. Raises `StoreUnavailable` if it is damaged."""
    with _refusals_named(path), closing(_read_only(path)) as connection:
        (verdict,) = connection.execute("pragma integrity_check(1)").fetchone()
        if verdict != "ok":
            raise StoreUnavailable(f"{path}: {verdict}")
        (revision,) = connection.execute("select version_num from alembic_version").fetchone()
        rows = connection.execute("""
            select latents_path, result from jobs where not expired and deleted_at is null
        """).fetchall()
        (jobs,) = connection.execute("select count(*) from jobs").fetchone()
        has_pictures = connection.execute(
            "select 1 from sqlite_master where name = 'job_pictures'"
        ).fetchone()
        pictures = connection.execute(PICTURES).fetchall() if has_pictures else []
    named = sorted({name for latents, result in rows for name in _named(latents, result)})
    return DatabaseCopy(str(revision), int(jobs), tuple(named), tuple(key for (key,) in pictures))


def _named(latents: str | None, result: str | None) -> Iterator[str]:
    if latents is not None:
        yield latents
    stored = json.loads(result) if result else {}
    yield from (str(value) for key, value in stored.items() if key.endswith("_path") and value)


def _read_only(path: Path) -> sqlite3.Connection:
    return sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True, timeout=WAIT_SECONDS)


@contextmanager
def _refusals_named(path: Path) -> Iterator[None]:
    try:
        yield
    except sqlite3.Error as error:
        raise StoreUnavailable(f"{path}: {error}") from error
