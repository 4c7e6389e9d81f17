"""The transaction that every write operation gets, and the queue's limits."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from sqlalchemy import BindParameter, Connection, CursorResult, Executable, TextClause, text

QUEUED_CHANNEL = "framefit_queued"
# PostgreSQL: the clock's time if there is one, else the time at which the server got the statement.
NOW = """coalesce(
    cast(:now as double precision), cast(extract(epoch from statement_timestamp()) as double precision)
)"""
NOTIFY_QUEUED = text(f"select pg_notify('{QUEUED_CHANNEL}', '')")


@dataclass(frozen=True, slots=True)
class Rules:
    """Limits of the queue.

    `max_skips`: how often a job is skipped for a job whose model is loaded. `priority_seconds`: the waiting
    time that one step of priority is worth. `heartbeat_seconds` and `lease_seconds` are the workers'; without
    the former nothing waits for a heartbeat after a jump of time (`app.store.upkeep.expiry`).
    """

    max_queued: int = 10_000
    max_queued_of_owner: int | None = None
    max_attempts: int = 3
    max_skips: int = 4
    priority_seconds: float = 600.0
    result_ttl_seconds: float | None = None
    heartbeat_seconds: float | None = None
    lease_seconds: float = 30.0


@dataclass(frozen=True, slots=True)
class Locking:
    """A query whose rows stay as they are until the transaction ends.

    SQLite's write lock does that. PostgreSQL locks the rows: `skip` leaves out those that another transaction
    has locked, otherwise the query waits for them.
    """

    sqlite: TextClause
    postgresql: TextClause

    @classmethod
    def of(cls, sql: str, *parameters: BindParameter[Any], skip: bool = False) -> "Locking":
        """Return the query in both dialects."""
        rows = f"{sql} for update{' skip locked' if skip else ''}"
        return cls(text(sql).bindparams(*parameters), text(rows).bindparams(*parameters))


@dataclass(frozen=True, slots=True)
class Statement:
    """A statement that PostgreSQL's driver runs as it is.

    For the most frequent ones: preparing the call and reading its row take SQLAlchemy longer than the server
    needs. `names` are the parameters `$1`, `$2` and so on.
    """

    sql: str
    names: tuple[str, ...]

    @classmethod
    def of(cls, sql: str) -> "Statement":
        """Return the statement, whose parameters are written as `:name`."""
        names = list(dict.fromkeys(_PARAMETER.findall(sql)))
        line = " ".join(sql.split())
        return cls(_PARAMETER.sub(lambda found: f"${names.index(found[1]) + 1}", line), tuple(names))


_PARAMETER = re.compile(r"(?<!:):(\w+)")
FirstRow = Callable[[Connection, Statement, Mapping[str, Any]], dict[str, Any] | None]


class Transaction:
    """An open transaction with its time and the queue's rules.

    On SQLite it holds the database's write lock. On PostgreSQL other transactions run at the same time: what
    an operation decides by must be locked (`Locking`) or be a condition of the statement that changes it.
    """

    def __init__(
        self,
        connection: Connection,
        rules: Rules,
        clock: Callable[[], float] | None,
        time_of: Callable[[Connection], float] | None = None,
        first_row: FirstRow | None = None,
    ) -> None:
        self.connection = connection
        self.rules = rules
        self.is_postgresql = connection.dialect.name == "postgresql"
        self._clock = clock
        self._time_of = time_of
        self._first_row = first_row
        self._now: float | None = None

    @property
    def now(self) -> float:
        """The transaction's time in seconds since the epoch: the clock's if there is one, else the
        server's."""
        if self._now is None:
            self._now = self._clock() if self._clock is not None else self._ask()
        return self._now

    def _ask(self) -> float:
        assert self._time_of is not None, "a database without a clock tells the time"
        return self._time_of(self.connection)

    @property
    def given_now(self) -> float | None:
        """The clock's time, or None if a statement has to ask the server."""
        return None if self._clock is None else self._clock()

    def execute(
        self, statement: Executable | Locking, parameters: Mapping[str, Any] | None = None
    ) -> CursorResult[Any]:
        """Run one statement."""
        if isinstance(statement, Locking):
            statement = statement.postgresql if self.is_postgresql else statement.sqlite
        return self.connection.execute(statement, parameters or {})

    def first(self, statement: Statement, parameters: Mapping[str, Any]) -> dict[str, Any] | None:
        """Run one statement on PostgreSQL; return its first row by column, or None."""
        assert self._first_row is not None, "only PostgreSQL runs such statements"
        return self._first_row(self.connection, statement, parameters)

    def announce_queued(self) -> None:
        """Wake the workers that wait for a job, at the commit."""
        if self.is_postgresql:
            self.execute(NOTIFY_QUEUED)

    @property
    def expires_at(self) -> float | None:
        """When the result of a job that ends now expires; None if results are kept forever."""
        ttl = self.rules.result_ttl_seconds
        return None if ttl is None else self.now + ttl
