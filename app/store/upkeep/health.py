"""Read-only check of a database: its schema revision, its write lock, the number of jobs."""

import sqlite3
from contextlib import closing
from pathlib import Path

from sqlalchemy import URL, Engine, create_engine, text
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError, DBAPIError
from sqlalchemy.pool import NullPool

from app.store.database import HEAD_REVISION, open_database
from app.store.database.base import revision_of
from app.store.database.sqlite import sqlite_path
from app.store.errors import StoreUnavailable
from app.store.transaction import Rules

__all__ = ["HEAD_REVISION", "LOCK_SECONDS", "inspect_database"]

LOCK_SECONDS = 3.0
COUNTS = text("select status, count(*) as jobs from jobs group by status order by status")


def inspect_database(url: URL | str) -> tuple[str | None, dict[str, int]]:
    """Return the schema's revision (None: no schema yet) and the number of jobs by status.

    Raises `StoreUnavailable` if the database does not answer or its write lock is taken for `LOCK_SECONDS`,
    and `ValueError` for an invalid URL.
    """
    try:
        parsed = make_url(url)
    except ArgumentError as error:
        raise ValueError(str(error)) from None
    if parsed.get_backend_name() == "sqlite":
        path = sqlite_path(parsed)
        if not path.exists():
            return None, {}
        _take_lock(path)
        engine = create_engine(parsed, poolclass=NullPool, connect_args={"timeout": LOCK_SECONDS})
    else:
        engine = open_database(url, Rules()).reads
    try:
        return _read(engine)
    except DBAPIError as error:
        raise StoreUnavailable(str(error.orig)) from error
    finally:
        engine.dispose()


def _take_lock(path: Path) -> None:
    try:
        with closing(sqlite3.connect(path, timeout=LOCK_SECONDS, isolation_level=None)) as connection:
            connection.execute("begin immediate")
            connection.execute("rollback")
    except sqlite3.Error as error:
        raise StoreUnavailable(f"{path}: {error}") from error


def _read(engine: Engine) -> tuple[str | None, dict[str, int]]:
    with engine.connect() as connection:
        revision = revision_of(connection)
        if revision is None:
            return None, {}
        return revision, {row.status: row.jobs for row in connection.execute(COUNTS)}
