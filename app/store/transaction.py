"""The transaction that every write operation gets, and the queue's limits."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import Connection, CursorResult, Executable


@dataclass(frozen=True, slots=True)
class Rules:
    """Limits of the queue.

    `max_skips`: how often a job is skipped for a job whose model is loaded. `priority_seconds`: the waiting
    time that one step of priority is worth.
    """

    max_queued: int = 10_000
    max_queued_of_owner: int | None = None
    max_attempts: int = 3
    max_skips: int = 4
    priority_seconds: float = 600.0
    result_ttl_seconds: float | None = None


@dataclass(frozen=True, slots=True)
class Transaction:
    """An open transaction under the write lock, with its time (seconds since the epoch) and the rules.

    `queued` caches the number of queued jobs: no other process can change it before the commit, so many
    submissions need one count. An operation that changes the number must update or clear the cache.
    """

    connection: Connection
    now: float
    rules: Rules
    queued: dict[str, int] = field(default_factory=dict)

    def execute(
        self, statement: Executable, parameters: Mapping[str, Any] | None = None
    ) -> CursorResult[Any]:
        """Run one statement."""
        return self.connection.execute(statement, parameters or {})

    @property
    def expires_at(self) -> float | None:
        """When the result of a job that ends now expires; None if results are kept forever."""
        ttl = self.rules.result_ttl_seconds
        return None if ttl is None else self.now + ttl
