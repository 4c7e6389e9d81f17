"""Databases: connections, transactions and migrations. Knows SQL dialects, not jobs.

base        what both kinds of database do; the schema's revision
sqlite      one write transaction at a time, on one thread; many callers share a commit
postgresql  a transaction a caller; row locks; time and the order of events come from the server
driver      the most frequent statements, run by PostgreSQL's driver itself
"""

from collections.abc import Callable

from sqlalchemy import URL
from sqlalchemy.engine import make_url

from app.store.database.base import HEAD_REVISION, Database, revision_of
from app.store.database.postgresql import PostgresqlDatabase
from app.store.database.sqlite import SqliteDatabase
from app.store.transaction import Rules

__all__ = ["HEAD_REVISION", "Database", "open_database", "revision_of"]


def open_database(url: URL | str, rules: Rules, clock: Callable[[], float] | None = None) -> Database:
    """Return the database at `url`. `clock` replaces the database's own time.

    Raises `ValueError` for an in-memory database, a path too long for SQLite or a missing PostgreSQL driver.
    """
    parsed = make_url(url)
    if parsed.get_backend_name() == "sqlite":
        return SqliteDatabase(parsed, rules, clock)
    return PostgresqlDatabase(parsed, rules, clock)
