"""PostgreSQL: every operation has a transaction of its own, and only rows are locked.

Processes of many hosts share the server. Three things therefore belong to it:

- Time. Leases and heartbeats are measured with the server's clock, so that a host whose clock is wrong
  harms nobody.
- The order of events. A transaction inserts its events into `new_events`. Whoever reads events first moves
  the committed ones into `events`, under a lock that only this step takes, and there they get their numbers.
  Numbers are thus given in the order of commits, and a reader that has seen number n has missed none below n,
  whatever transactions are still open. The events of one job keep their order, because each is inserted while
  the job's row is locked.
- The end of what hangs. A session that a lost host leaves inside a transaction is ended by the server, and
  its row locks with it.
"""

import threading
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, suppress
from typing import Any, TypeVar

from sqlalchemy import URL, Connection, Engine, create_engine, event, text
from sqlalchemy.engine import ExceptionContext
from sqlalchemy.exc import DBAPIError, SQLAlchemyError

from app.loops import Loop
from app.store.database.base import Database, Operation
from app.store.database.refusals import READ_ONLY_STATE, refusals_named, translated
from app.store.errors import StoreUnavailable
from app.store.transaction import QUEUED_CHANNEL, Rules, Transaction

T = TypeVar("T")
# Advisory lock numbers that others hardly use: names in ASCII, shifted to fit a signed bigint.
MIGRATION_LOCK = int.from_bytes(b"framefit") >> 1
PUBLISHING_LOCK = int.from_bytes(b"ff event") >> 1
# A session that waits inside a transaction for this long is ended; others wait for its locks a little longer.
IDLE_IN_TRANSACTION_SECONDS = 4.0
LOCK_TIMEOUT_SECONDS = 5.0
STATEMENT_TIMEOUT_SECONDS = 10.0
# Both sides notice a lost peer after this time at most.
PEER_TIMEOUT_SECONDS = 10
CONNECT_TIMEOUT_SECONDS = 5
POOL_TIMEOUT_SECONDS = 10.0
ATTEMPTS = 5
PUBLISHED_AT_ONCE = 5000
LISTEN_SECONDS = 0.5  # how soon a listener notices that it is closed

# https://www.postgresql.org/docs/current/errcodes-appendix.html: serialization failure, deadlock, and the
# race of two transactions for one idempotency key or worker id. The loser's next attempt finds the winner's
# row. A read-only session is replaced for the next attempt.
WORTH_ANOTHER_ATTEMPT = {"40001", "40P01", "23505", READ_ONLY_STATE}
TIME = text("select cast(extract(epoch from clock_timestamp()) as double precision)")
READ_ONLY = text("show transaction_read_only")
LOCK = text("select pg_advisory_xact_lock(:key)")
ANY_NEW = text("select 1 from new_events limit 1")
PUBLISH = text("""
    with moved as (
        delete from new_events where id in (select id from new_events order by id limit :limit)
        returning id, job_id, kind, at, data
    )
    insert into events (job_id, kind, at, data) select job_id, kind, at, data from moved order by id
""")


class PostgresqlDatabase(Database):
    """A database on a PostgreSQL server. Raises `ValueError` if its driver is not installed."""

    polls_take_locks = False
    refusals_are_final = False  # the connection may break during a commit

    def __init__(self, url: URL, rules: Rules, clock: Callable[[], float] | None = None) -> None:
        if url.drivername == "postgresql":
            url = url.set(drivername="postgresql+psycopg")
        self.url = url
        try:
            self.writes = _engine(url, pool_size=5, max_overflow=15)
            self.reads = _engine(url, pool_size=10, max_overflow=20, isolation_level="AUTOCOMMIT")
            # The most frequent operations: a connection is neither tried before each nor cleaned after it.
            # One that has broken fails one of them, which its caller repeats at its next turn. Each is
            # planned once: left to itself the server may plan a claim anew each time, which takes it longer
            # than the claim.
            self._statements = _engine(
                url,
                settings=("plan_cache_mode=force_generic_plan",),
                prepare_threshold=0,
                pool_size=2,
                max_overflow=8,
                isolation_level="AUTOCOMMIT",
                pool_pre_ping=False,
                pool_reset_on_return=None,
            )
        except ModuleNotFoundError as error:
            raise ValueError(
                f"{error}: PostgreSQL needs the extra: pip install 'framefit[postgres]'"
            ) from None
        self._rules = rules
        self._clock = clock
        self._closed = threading.Event()
        self._listener: _Listener | None = None

    def time(self) -> float:
        """The server's time."""
        if self._clock is not None:
            return self._clock()
        with self.reading() as connection:
            return server_time(connection)

    def run(self, operation: Operation[T]) -> T:
        """Run `operation` in a transaction of its own."""
        return self._attempts(self.writes.begin, operation)

    def run_statement(self, operation: Operation[T]) -> T:
        """Run `operation`, each statement of which is a transaction of its own."""
        return self._attempts(self._statements.connect, operation)

    def _attempts(
        self, connect: Callable[[], AbstractContextManager[Connection]], operation: Operation[T]
    ) -> T:
        """Run `operation`, and once more when another transaction got in its way."""
        from app.store.database.driver import first_row

        for attempt in range(1, ATTEMPTS + 1):
            if self._closed.is_set():
                raise StoreUnavailable("the job store is closed")
            try:
                with connect() as connection:
                    tx = Transaction(connection, self._rules, self._clock, server_time, first_row)
                    return operation(tx)
            except DBAPIError as error:
                if sqlstate(error) not in WORTH_ANOTHER_ATTEMPT or attempt == ATTEMPTS:
                    raise translated(error) from error
            except (SQLAlchemyError, OSError) as error:  # no connection became free
                raise translated(error) from error
        raise AssertionError("the last attempt returns or raises")

    def check(self) -> None:
        """Ask the server whether it takes writes."""
        with self.reading() as connection:
            if connection.execute(READ_ONLY).scalar() == "on":
                # Only a new session can tell that the server takes writes again, or reach the one that does.
                connection.invalidate()
                connection.engine.dispose()
                raise StoreUnavailable("the server is read-only: it takes no writes")

    def publish_events(self) -> None:
        """Move the events of committed transactions into `events`, where they get their numbers."""
        with refusals_named():
            with self.reads.connect() as connection:
                if connection.execute(ANY_NEW).first() is None:
                    return
            moved = PUBLISHED_AT_ONCE
            while moved == PUBLISHED_AT_ONCE:
                with self.writes.begin() as connection:
                    # Until the commit: the next publisher must not number later events below these.
                    connection.execute(LOCK, {"key": PUBLISHING_LOCK})
                    moved = connection.execute(PUBLISH, {"limit": PUBLISHED_AT_ONCE}).rowcount

    def drop_erased_bytes(self) -> bool:
        """The server's autovacuum does this, and its operator decides about logs and backups."""
        return True

    def on_queued(self, wake: Callable[[], None]) -> bool:
        """Call `wake`, on a thread of this object, whenever a process has queued a job."""
        if self._listener is None:
            self._listener = _Listener(self.reads, wake)
            self.loops = (self._listener.loop,)
        return True

    def close(self) -> None:
        """Stop the listener and close every connection."""
        self._closed.set()
        if self._listener is not None:
            self._listener.close()
        self._statements.dispose()
        super().close()

    def migrate(self, *, must_write: bool = False) -> None:
        """As `Database.migrate`. The connection that did it has no limits and is not used again."""
        try:
            super().migrate(must_write=must_write)
        finally:
            self.writes.dispose()

    def _prepare_migration(self, connection: Connection) -> None:
        # A migration may take long, and another process may have to wait for it.
        connection.exec_driver_sql("set local lock_timeout = 0")
        connection.exec_driver_sql("set local statement_timeout = 0")
        connection.exec_driver_sql("set local idle_in_transaction_session_timeout = 0")
        driver: Any = connection.connection.dbapi_connection
        driver.answer_seconds = None
        connection.execute(LOCK, {"key": MIGRATION_LOCK})


class _Listener:
    """Calls `wake` whenever a job was queued; `loop` opens its session again after whatever has ended it."""

    def __init__(self, engine: Engine, wake: Callable[[], None]) -> None:
        self._engine = engine
        self._wake = wake
        self._session: Connection | None = None
        self.loop = Loop("store-listener", self._listen, every_seconds=0.0, known=(StoreUnavailable,)).start()

    def close(self) -> None:
        """Stop the thread and close its session."""
        self.loop.stop()
        self.loop.join()
        self._end_session()

    def _listen(self) -> bool:
        try:
            with refusals_named():
                session = self._session or self._begin_session()
                driver: Any = session.connection.dbapi_connection
                for _ in driver.notifies(timeout=LISTEN_SECONDS, stop_after=1):
                    self._wake()
        except Exception:
            self._end_session()
            raise
        return True

    def _begin_session(self) -> Connection:
        self._session = session = self._engine.connect()
        session.detach()  # it is closed in the end, not returned: it goes on listening
        session.exec_driver_sql(f"listen {QUEUED_CHANNEL}")
        self._wake()  # a job may have been queued while nobody listened
        return session

    def _end_session(self) -> None:
        session, self._session = self._session, None
        if session is not None:
            with suppress(Exception):
                session.close()


def server_time(connection: Connection) -> float:
    """Return the server's time in seconds since the epoch."""
    return float(connection.execute(TIME).scalar_one())


def sqlstate(error: DBAPIError) -> str | None:
    """Return the server's five-character error code, or None for an error of the connection."""
    return getattr(error.orig, "sqlstate", None)


def _engine(url: URL, *, settings: Sequence[str] = (), prepare_threshold: int = 5, **options: Any) -> Engine:
    # https://www.postgresql.org/docs/current/libpq-connect.html and runtime-config-client.html. What the URL
    # says wins: SQLAlchemy passes its parameters on, in place of those that are the same here.
    milliseconds = {
        "lock_timeout": LOCK_TIMEOUT_SECONDS,
        "statement_timeout": STATEMENT_TIMEOUT_SECONDS,
        "idle_in_transaction_session_timeout": IDLE_IN_TRANSACTION_SECONDS,
    }
    session = [f"-c {name}={int(1000 * seconds)}" for name, seconds in milliseconds.items()]
    session += [
        f"-c tcp_keepalives_idle={PEER_TIMEOUT_SECONDS // 2}",
        "-c tcp_keepalives_interval=2",
        "-c tcp_keepalives_count=3",
        f"-c tcp_user_timeout={1000 * PEER_TIMEOUT_SECONDS}",
        "-c jit=off",  # compiling takes longer than the longest of these statements
        *(f"-c {setting}" for setting in settings),
        str(url.query.get("options", "")),
    ]
    arguments = {
        "connect_timeout": CONNECT_TIMEOUT_SECONDS,
        "keepalives_idle": PEER_TIMEOUT_SECONDS // 2,
        "keepalives_interval": 2,
        "keepalives_count": 3,
        "tcp_user_timeout": 1000 * PEER_TIMEOUT_SECONDS,
        "application_name": "framefit",
        "prepare_threshold": prepare_threshold,
    }
    arguments = {name: value for name, value in arguments.items() if name not in url.query}
    arguments["options"] = " ".join(session).strip()
    options = {"pool_pre_ping": True, **options}
    engine = create_engine(url, connect_args=arguments, pool_timeout=POOL_TIMEOUT_SECONDS, **options)
    event.listen(engine, "do_connect", _connect)
    event.listen(engine, "handle_error", _end_read_only_sessions)
    return engine


def _end_read_only_sessions(context: ExceptionContext) -> None:
    if getattr(context.original_exception, "sqlstate", None) == READ_ONLY_STATE:
        context.is_disconnect = True  # the pool drops this session and the ones beside it


def _connect(_dialect: Any, _record: Any, arguments: Any, parameters: Any) -> Any:
    from app.store.database.answers import TimedConnection, answer_seconds

    connection = TimedConnection.connect(*arguments, **parameters)
    connection.answer_seconds = answer_seconds(parameters["options"])
    return connection
