"""SQLite: every write of a process goes through one thread, and many callers share a commit.

While one commit waits for the disk, further operations queue up, and a single fsync makes them all durable.
Other processes open the same file. Each write transaction takes the file's write lock when it begins
(`BEGIN IMMEDIATE`). Events are therefore committed in the order of their numbers, and a reader that has seen
number n has missed none below n.
"""

import logging
import os
import queue
import sqlite3
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import closing
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote

from sqlalchemy import URL, Connection, create_engine, event
from sqlalchemy.exc import DBAPIError, IntegrityError, InterfaceError, ProgrammingError

from app.artifacts.data_folder import WatchedPath
from app.loops import Loop
from app.store.database.base import REWRITE, Database, Operation, Outcome
from app.store.database.refusals import translated
from app.store.errors import DataFolderUnusable, StoreUnavailable
from app.store.transaction import Rules, Transaction

log = logging.getLogger(__name__)
T = TypeVar("T")
BUSY_TIMEOUT_SECONDS = 15.0
CHECKPOINT_TIMEOUT_SECONDS = 0.2
POOL_TIMEOUT_SECONDS = 10.0
IDLE_SECONDS = 2.0
MAX_BATCH = 128
PATH_BYTES = 504  # SQLite's Unix file layer has 512 for a path with "-journal" at its end


class SqliteDatabase(Database):
    """A database file. Raises `ValueError` as `sqlite_path`."""

    polls_take_locks = True
    refusals_are_final = True

    def __init__(self, url: URL, rules: Rules, clock: Callable[[], float] | None = None) -> None:
        self._path = sqlite_path(url)
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self.url = url
        self._file = WatchedPath(self._path)
        self.writes = create_engine(url, creator=self._connect)
        self.reads = create_engine(
            url,
            creator=self._connect,
            isolation_level="AUTOCOMMIT",
            pool_size=40,
            pool_timeout=POOL_TIMEOUT_SECONDS,
        )
        for engine in (self.writes, self.reads):
            event.listen(engine, "connect", _set_pragmas)
        event.listen(self.writes, "connect", _disable_driver_transactions)
        event.listen(self.writes, "begin", lambda connection: connection.exec_driver_sql("BEGIN IMMEDIATE"))
        self._rules = rules
        self._clock = clock or time.time
        self._inbox: queue.SimpleQueue[tuple[Operation[Any], Future[Any]] | None] = queue.SimpleQueue()
        self._closed = False
        self._lock = threading.Lock()
        self._writer = Loop("store-writer", self._turn, every_seconds=0.0).start()
        self.loops = (self._writer,)

    def _connect(self) -> sqlite3.Connection:
        # SQLite would make a file that was removed anew, empty.
        mode = "rw" if self._file.is_known else "rwc"
        place = quote(os.fsencode(self._file.path))
        return sqlite3.connect(
            f"file:{place}?mode={mode}", uri=True, timeout=BUSY_TIMEOUT_SECONDS, check_same_thread=False
        )

    def check(self) -> None:
        """Write and read. A transaction without a write begins on a file that is read-only, too."""
        self.run(lambda transaction: transaction.execute(REWRITE))
        with self.reading() as connection:
            connection.exec_driver_sql("select 1")

    def time(self) -> float:
        """This host's time: the processes that share the file share the host."""
        return self._clock()

    def run(self, operation: Operation[T]) -> T:
        """Run `operation` inside a savepoint of the next transaction; return its result after the commit."""
        future: Future[T] = Future()
        with self._lock:
            if self._closed:
                raise StoreUnavailable("the job store is closed")
            self._inbox.put((operation, future))
        return future.result()

    def run_statement(self, operation: Operation[T]) -> T:
        """As `run`: callers share a commit either way."""
        return self.run(operation)

    def publish_events(self) -> None:
        """Events have their numbers: transactions follow each other."""

    def drop_erased_bytes(self) -> bool:
        """Copy the write-ahead log into the database file, and empty it.

        Freed space in the file is overwritten with zeros (`secure_delete`); the log keeps the bytes until it
        is emptied. Returns False if a reader or a writer is in the way.
        """
        try:
            with closing(self._connect_briefly()) as connection:
                busy, _, _ = connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
        except sqlite3.OperationalError as error:
            if self._path.exists():
                log.debug("checkpoint_postponed reason=%s", error)
                return False
            raise StoreUnavailable(f"{self._path}: {error}") from error
        return not busy

    def _connect_briefly(self) -> sqlite3.Connection:
        # Others cannot write while a checkpoint waits for readers: it is tried again rather than waited for.
        place = quote(os.fsencode(self._path))
        return sqlite3.connect(
            f"file:{place}?mode=rw", uri=True, timeout=CHECKPOINT_TIMEOUT_SECONDS, isolation_level=None
        )

    def on_queued(self, _wake: Callable[[], None]) -> bool:
        """SQLite cannot tell."""
        return False

    def _prepare_migration(self, _connection: Connection) -> None:
        """The transaction holds the file's write lock already."""

    def close(self) -> None:
        """Finish the pending operations, stop the thread and close every connection."""
        with self._lock:
            if not self._closed:
                self._closed = True
                self._inbox.put(None)
        self._writer.join()
        super().close()

    def _turn(self) -> bool:
        batch, last = self._next_batch()
        if batch:
            self._commit(batch)
        if last:
            self._writer.stop()
        return True

    def _next_batch(self) -> tuple[list[tuple[Operation[Any], Future[Any]]], bool]:
        batch = []
        try:
            item = self._inbox.get(timeout=IDLE_SECONDS)
            while item is not None:
                batch.append(item)
                if len(batch) == MAX_BATCH:
                    return batch, False
                item = self._inbox.get_nowait()
        except queue.Empty:
            return batch, False
        return batch, True

    def _commit(self, batch: list[tuple[Operation[Any], Future[Any]]]) -> None:
        outcomes: list[tuple[Future[Any], Any, BaseException | None]] = []
        try:
            with self.writes.begin() as connection:
                for operation, future in batch:
                    transaction = Transaction(connection, self._rules, self._clock)
                    outcomes.append((future, *_attempt(transaction, operation)))
            self._require_file()
        except Exception as error:
            refusal = translated(error)
            for _, future in batch:
                future.set_exception(refusal)
            return
        for future, result, problem in outcomes:
            if problem is None:
                future.set_result(result)
            else:
                future.set_exception(problem)

    def _require_file(self) -> None:
        """Refuse what was written to a file that nobody will find again."""
        fault = self._file.fault()
        if fault is not None:
            raise DataFolderUnusable(self._file.path, fault)


def sqlite_path(url: URL) -> Path:
    """Return the path of an SQLite database. Raises `ValueError` for one in memory or a path too long."""
    if url.database in (None, "", ":memory:"):
        raise ValueError("several processes share the jobs: SQLite needs a database file, not :memory:")
    path = Path(str(url.database)).absolute()
    length = len(os.fsencode(path.resolve()))
    if length > PATH_BYTES:
        raise ValueError(
            f"the path of the database has {length} bytes; SQLite opens at most {PATH_BYTES}: "
            "choose a folder with a shorter path (FRAMEFIT_DATA_DIR)"
        )
    return path


def _set_pragmas(connection: sqlite3.Connection, _record: object) -> None:
    cursor = connection.cursor()
    cursor.execute("PRAGMA journal_mode=WAL")
    cursor.execute("PRAGMA synchronous=FULL")
    cursor.execute("PRAGMA foreign_keys=ON")
    # Deleted content is overwritten with zeros, and no copy of it goes into a temporary file.
    cursor.execute("PRAGMA secure_delete=ON")
    cursor.execute("PRAGMA temp_store=MEMORY")
    cursor.close()


def _disable_driver_transactions(connection: sqlite3.Connection, _record: object) -> None:
    # The driver's own BEGIN is deferred, and it sends one before some statements only.
    connection.isolation_level = None


def _attempt(transaction: Transaction, operation: Operation[Any]) -> Outcome:
    # Plain SQL: SQLAlchemy's savepoint objects cost more than the savepoints themselves.
    connection: Connection = transaction.connection
    connection.exec_driver_sql("savepoint operation")
    try:
        result = operation(transaction)
        connection.exec_driver_sql("release savepoint operation")
        return result, None
    except DBAPIError as error:
        if _is_refusal(error):
            raise  # a full disk or a lost lock fails the whole transaction
        problem: BaseException = translated(error)
    except Exception as error:
        problem = error if isinstance(error, OSError) else translated(error)
    connection.exec_driver_sql("rollback to savepoint operation")
    return None, problem


def _is_refusal(error: DBAPIError) -> bool:
    # The driver reports a lock, a full disk and a damaged file in this way; these others are of one
    # statement.
    return not isinstance(error, IntegrityError | ProgrammingError | InterfaceError) or (
        error.connection_invalidated
    )
