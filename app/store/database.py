"""Connections, migrations and the one writer thread. Knows SQL dialects, not jobs.

Every write of a process goes through `Writer`, which commits the operations of many callers in one
transaction: while one commit waits for the disk, further operations queue up, and a single fsync makes them
all durable. Other processes open the same database. Each write transaction takes a global write lock when it
begins (SQLite: `BEGIN IMMEDIATE`, PostgreSQL: an advisory lock). Events are therefore committed in the order
of their numbers, and a reader that has seen number n has missed none below n.
"""

import queue
import sqlite3
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from sqlalchemy import URL, Connection, Engine, create_engine, event, inspect, text
from sqlalchemy.engine import make_url
from sqlalchemy.exc import DBAPIError, OperationalError

from app.store.errors import StoreUnavailable
from app.store.transaction import Rules, Transaction

T = TypeVar("T")
Operation = Callable[[Transaction], Any]
BUSY_TIMEOUT_SECONDS = 15.0
MAX_BATCH = 128
HEAD_REVISION = "0003"
# An advisory lock number unlikely to be used by others: "framefit" in ASCII, shifted to fit a signed bigint.
WRITE_LOCK = int.from_bytes(b"framefit") >> 1


def open_engines(url: str) -> tuple[Engine, Engine]:
    """Return `(writes, reads)`: an engine whose transactions take the write lock when they begin, and one for
    reads. Raises `ValueError` for an in-memory database or a missing PostgreSQL driver.
    """
    parsed = make_url(url)
    if parsed.get_backend_name() != "sqlite":
        return _open_postgresql(parsed)
    if parsed.database in (None, "", ":memory:"):
        raise ValueError("several processes share the jobs: SQLite needs a database file, not :memory:")
    Path(str(parsed.database)).parent.mkdir(parents=True, exist_ok=True)
    arguments = {"timeout": BUSY_TIMEOUT_SECONDS, "check_same_thread": False}
    writes = create_engine(parsed, connect_args=arguments)
    reads = create_engine(parsed, connect_args=arguments, isolation_level="AUTOCOMMIT", pool_size=40)
    for engine in (writes, reads):
        event.listen(engine, "connect", _set_pragmas)
    event.listen(writes, "connect", _disable_driver_transactions)
    event.listen(writes, "begin", lambda connection: connection.exec_driver_sql("BEGIN IMMEDIATE"))
    return writes, reads


def _open_postgresql(url: URL) -> tuple[Engine, Engine]:
    if url.drivername == "postgresql":
        url = url.set(drivername="postgresql+psycopg")
    try:
        writes = create_engine(url, pool_pre_ping=True)
        reads = create_engine(url, pool_pre_ping=True, isolation_level="AUTOCOMMIT", pool_size=40)
    except ModuleNotFoundError as error:
        raise ValueError(f"{error}: PostgreSQL needs the extra: pip install 'framefit[postgres]'") from None
    lock = text("select pg_advisory_xact_lock(:key)").bindparams(key=WRITE_LOCK)
    event.listen(writes, "begin", lambda connection: connection.execute(lock))
    return writes, reads


def _set_pragmas(connection: sqlite3.Connection, _record: object) -> None:
    cursor = connection.cursor()
    cursor.execute("PRAGMA journal_mode=WAL")
    cursor.execute("PRAGMA synchronous=FULL")
    cursor.execute("PRAGMA foreign_keys=ON")
    cursor.close()


def _disable_driver_transactions(connection: sqlite3.Connection, _record: object) -> None:
    # The driver's own BEGIN is deferred, and it sends one before some statements only.
    connection.isolation_level = None


def migrate(engine: Engine) -> None:
    """Upgrade the schema to the newest revision; safe when several processes start together."""
    with engine.begin() as connection:
        if revision_of(connection) == HEAD_REVISION:
            return
        # Imported late: it would double the start-up time of a process whose schema is up to date.
        from alembic import command
        from alembic.config import Config

        config = Config()
        config.set_main_option("script_location", str(Path(__file__).with_name("migrations")))
        config.attributes["connection"] = connection
        command.upgrade(config, "head")


def revision_of(connection: Connection) -> str | None:
    """Return the schema's revision, or None if the database has no schema."""
    if "alembic_version" not in inspect(connection).get_table_names():
        return None
    return connection.execute(text("select version_num from alembic_version")).scalar()


@contextmanager
def reading(engine: Engine) -> Iterator[Connection]:
    """Yield a connection for reads outside any transaction. Raises `StoreUnavailable` for database errors."""
    try:
        with engine.connect() as connection:
            yield connection
    except DBAPIError as error:
        raise _translated(error) from error


class Writer:
    """Runs write operations in order on one thread. A call returns when its effects are durable."""

    def __init__(self, engine: Engine, rules: Rules, clock: Callable[[], float]) -> None:
        self._engine = engine
        self._rules = rules
        self._clock = clock
        self._inbox: queue.SimpleQueue[tuple[Operation, Future[Any]] | None] = queue.SimpleQueue()
        self._closed = False
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self._loop, name="store-writer", daemon=True)
        self._thread.start()

    def run(self, operation: Callable[[Transaction], T]) -> T:
        """Run `operation` inside a savepoint of the next transaction; return its result after the commit.

        An exception of the operation is raised here and rolls back that operation only. Raises
        `StoreUnavailable` if the database refuses the transaction or the store is closed.
        """
        future: Future[T] = Future()
        with self._lock:
            if self._closed:
                raise StoreUnavailable("the job store is closed")
            self._inbox.put((operation, future))
        return future.result()

    def close(self) -> None:
        """Finish the pending operations, then stop the thread."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
            self._inbox.put(None)
        self._thread.join()

    def _loop(self) -> None:
        while True:
            batch, last = self._next_batch()
            if batch:
                self._commit(batch)
            if last:
                return

    def _next_batch(self) -> tuple[list[tuple[Operation, Future[Any]]], bool]:
        batch = []
        item = self._inbox.get()
        while item is not None:
            batch.append(item)
            if len(batch) == MAX_BATCH:
                return batch, False
            try:
                item = self._inbox.get_nowait()
            except queue.Empty:
                return batch, False
        return batch, True

    def _commit(self, batch: list[tuple[Operation, Future[Any]]]) -> None:
        outcomes: list[tuple[Future[Any], Any, BaseException | None]] = []
        queued: dict[str, int] = {}
        try:
            with self._engine.begin() as connection:
                queued = _cached_counts(connection)
                for operation, future in batch:
                    transaction = Transaction(connection, self._clock(), self._rules, queued)
                    outcomes.append((future, *_attempt(transaction, operation)))
        except Exception as error:
            queued.clear()
            refusal = _translated(error)
            for _, future in batch:
                future.set_exception(refusal)
            return
        for future, result, problem in outcomes:
            if problem is None:
                future.set_result(result)
            else:
                future.set_exception(problem)


def _cached_counts(connection: Connection) -> dict[str, int]:
    """Return the counts of earlier transactions, valid as long as no other connection has written since.

    They are empty on PostgreSQL, which has no cheap test for that.
    """
    if connection.dialect.name != "sqlite":
        return {}
    # https://sqlite.org/pragma.html#pragma_data_version: only commits of other connections change it.
    version = connection.exec_driver_sql("pragma data_version").scalar_one()
    if connection.info.get("data_version") != version:
        connection.info.update(data_version=version, queued={})
    counted: dict[str, int] = connection.info["queued"]
    return counted


def _attempt(transaction: Transaction, operation: Operation) -> tuple[Any, BaseException | None]:
    # Plain SQL: SQLAlchemy's savepoint objects cost more than the savepoints themselves.
    connection = transaction.connection
    connection.exec_driver_sql("savepoint operation")
    try:
        result = operation(transaction)
        connection.exec_driver_sql("release savepoint operation")
        return result, None
    except DBAPIError as error:
        if _is_refusal(error):
            raise  # a full disk or a lost connection fails the whole transaction
        problem: BaseException = error
    except Exception as error:
        problem = error
    transaction.queued.clear()
    connection.exec_driver_sql("rollback to savepoint operation")
    return None, problem


def _is_refusal(error: DBAPIError) -> bool:
    # Both drivers report a lock, a lost connection and a full disk as operational errors.
    return isinstance(error, OperationalError) or error.connection_invalidated


def _translated(error: Exception) -> Exception:
    if isinstance(error, DBAPIError):
        return StoreUnavailable(str(error.orig))
    return error
