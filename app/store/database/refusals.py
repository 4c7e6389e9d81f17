"""Every error of a database, its driver or its files as one of the store's errors. Nothing else leaves here.

Also says why a database cannot be opened: what is wrong, where it is, and what to do. Knows no jobs.
"""

import logging
from collections.abc import Iterator
from contextlib import contextmanager

from sqlalchemy import URL
from sqlalchemy.exc import ArgumentError, DBAPIError, IntegrityError, ResourceClosedError, SQLAlchemyError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from app.store.errors import CannotOpen, StoreError, StoreUnavailable

log = logging.getLogger(__name__)

Remedies = tuple[tuple[tuple[str, ...], str], ...]
DRIVERS = ("sqlite3", "psycopg", "alembic")
# PostgreSQL's code for a write in a read-only transaction: the server that answers has lost its role in a
# failover, or its operator stopped writes. A session may stay so for good; a new one may not.
READ_ONLY_STATE = "25006"
# Part of the database's own words (in lower case) -> what to do. The first that is found counts.
SQLITE_REMEDIES: Remedies = (
    (
        ("not a database", "malformed", "unsupported file format", "no such table", "no such column"),
        "move the file away and restore it from a backup; without it the service starts with no jobs",
    ),
    (("already exists", "duplicate column"), "it belongs to another program: set FRAMEFIT_DATABASE_URL"),
    (("locked", "busy"), "another program holds its lock: end that program, then start again"),
    (("full",), "its disk is full: free some space, then start again"),
    (
        ("readonly", "read-only", "unable to open", "permission", "disk i/o"),
        "let the user that runs the service write the file and its folder, or set FRAMEFIT_DATA_DIR",
    ),
)
POSTGRESQL_REMEDIES: Remedies = (
    (("authentication failed", "no password"), "check user and password in FRAMEFIT_DATABASE_URL"),
    (("database", "does not exist"), "create it (createdb), or correct the name in FRAMEFIT_DATABASE_URL"),
    (("permission denied", "must be owner"), "let the user create tables: grant create on schema public"),
    (("read-only", "recovery"), "it is read-only: name the server that takes writes"),
    (("lock timeout", "statement timeout"), "another session holds its locks: end it, then start again"),
    (("pg_hba",), "let this host and user connect (pg_hba.conf)"),
    (("too many clients", "connection slots"), "raise max_connections, or end other clients"),
)
UNREACHABLE = "start the server, or correct host and port in FRAMEFIT_DATABASE_URL"


@contextmanager
def refusals_named() -> Iterator[None]:
    """Raise the errors of the database library, the driver and the system as `StoreUnavailable`."""
    try:
        yield
    except StoreError:
        raise
    except Exception as error:
        refusal = translated(error)
        if refusal is error:
            raise
        raise refusal from error


def translated(error: Exception) -> Exception:
    """Return the store's error for one of the database or the system, or the error itself."""
    if not isinstance(error, SQLAlchemyError | OSError) and not _of_driver(error):
        return error
    if isinstance(error, IntegrityError | ResourceClosedError | ArgumentError):
        log.error("statement_refused reason=%s", words_of(error))  # likely a fault of ours
    if isinstance(error, DBAPIError) and error.orig is not None:
        return StoreUnavailable(words_of(error.orig))
    if isinstance(error, PoolTimeout):
        return StoreUnavailable("all connections to the database are in use")
    return StoreUnavailable(words_of(error))


def _of_driver(error: Exception) -> bool:
    return type(error).__module__.partition(".")[0] in DRIVERS


def words_of(error: BaseException) -> str:
    """Return the error's text in one line: it goes into logs and answers."""
    return " ".join(str(error).split()) or type(error).__name__


@contextmanager
def opening(url: URL) -> Iterator[None]:
    """Raise what keeps a database from being opened as `CannotOpen`, which says what to do."""
    try:
        with refusals_named():
            yield
    except StoreUnavailable as error:
        raise CannotOpen(place_of(url), str(error), _remedy(url, str(error).lower())) from error


def place_of(url: URL) -> str:
    """Return where a database is: its file, or its address without the password."""
    if url.get_backend_name() == "sqlite":
        return str(url.database)
    return url.set(query={}).render_as_string(hide_password=True)


def _remedy(url: URL, words: str) -> str:
    if url.get_backend_name() == "sqlite":
        table, otherwise = SQLITE_REMEDIES, "run framefit doctor"
    else:
        table, otherwise = POSTGRESQL_REMEDIES, UNREACHABLE
    for parts, remedy in table:
        found = all if parts == ("database", "does not exist") else any
        if found(part in words for part in parts):
            return remedy
    return otherwise
