"""What both kinds of database do, and the schema's revision."""

import abc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from sqlalchemy import URL, Connection, Engine, inspect, text

from app.loops import Loop
from app.store.database.refusals import opening, place_of, refusals_named
from app.store.errors import NewerSchema
from app.store.transaction import Transaction

T = TypeVar("T")
Operation = Callable[[Transaction], T]
HEAD_REVISION = "0015"
REWRITE = text("update alembic_version set version_num = version_num")
REVISIONS = Path(__file__).parents[1] / "migrations" / "versions"


class Database(abc.ABC):
    """Two engines over one database: `writes` for transactions, `reads` for single statements.

    Its methods raise `StoreUnavailable` if the database refuses.
    """

    writes: Engine
    reads: Engine
    url: URL
    loops: tuple[Loop, ...] = ()  # the threads that it needs
    polls_take_locks: bool  # whether an operation that changes nothing keeps others waiting
    refusals_are_final: bool  # whether an operation that was refused has certainly left nothing

    @abc.abstractmethod
    def run(self, operation: Operation[T]) -> T:
        """Run `operation` in a transaction; return its result when its effects are durable.

        An exception of the operation is raised here and rolls back that operation only.
        """

    @abc.abstractmethod
    def run_statement(self, operation: Operation[T]) -> T:
        """As `run`, for an operation that writes with a single statement."""

    @abc.abstractmethod
    def time(self) -> float:
        """The time that leases and heartbeats are measured with, in seconds since the epoch."""

    @abc.abstractmethod
    def check(self) -> None:
        """Raise `StoreUnavailable` unless something could be written now."""

    @abc.abstractmethod
    def publish_events(self) -> None:
        """Number the events of finished transactions, unless they got their numbers when they were
        written."""

    @abc.abstractmethod
    def on_queued(self, wake: Callable[[], None]) -> bool:
        """Call `wake` whenever a process has queued a job. Returns False if the database cannot tell."""

    @abc.abstractmethod
    def drop_erased_bytes(self) -> bool:
        """Let the bytes of deleted rows leave the database's files as far as it can.

        Returns False if it has to be tried again.
        """

    def close(self) -> None:
        """Finish the operations that are under way, then close every connection."""
        self.writes.dispose()
        self.reads.dispose()

    @contextmanager
    def reading(self) -> Iterator[Connection]:
        """Yield a connection for reads outside any transaction."""
        with refusals_named(), self.reads.connect() as connection:
            yield connection

    def migrate(self, *, must_write: bool = False) -> None:
        """Upgrade the schema to the newest revision; safe when several processes start together.

        `must_write`: write even if the schema is the newest, to see that this is possible.

        Raises `NewerSchema` if a newer version of the program has upgraded it further, and `CannotOpen`, with
        what to do, if it cannot be opened.
        """
        with opening(self.url), self.writes.begin() as connection:
            self._prepare_migration(connection)
            revision = revision_of(connection)
            if revision == HEAD_REVISION:
                if must_write:
                    connection.execute(REWRITE)
                return
            if revision is not None and not list(REVISIONS.glob(f"{revision}_*.py")):
                raise NewerSchema(revision, HEAD_REVISION, place_of(self.url))
            # Imported late: it would double the start-up time of a process whose schema is up to date.
            from alembic import command
            from alembic.config import Config

            config = Config()
            # In Alembic's options, as in any configuration file of Python, a single % stands for another
            # value.
            config.set_main_option("script_location", str(REVISIONS.parent).replace("%", "%%"))
            config.attributes["connection"] = connection
            command.upgrade(config, "head")

    @abc.abstractmethod
    def _prepare_migration(self, connection: Connection) -> None:
        """Let no other process migrate until this transaction ends."""


def revision_of(connection: Connection) -> str | None:
    """Return the schema's revision, or None if the database has no schema."""
    if "alembic_version" not in inspect(connection).get_table_names():
        return None
    return connection.execute(text("select version_num from alembic_version")).scalar()


Outcome = tuple[Any, BaseException | None]
