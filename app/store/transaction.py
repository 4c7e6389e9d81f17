"""What an operation on the job table works in, and the rules it keeps."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import Connection, CursorResult, Executable


@dataclass(frozen=True, slots=True)
class Rules:
    """Limits and times of the queue; seconds. `max_skips`: how often a job is passed over for one whose model
    is loaded. `priority_seconds`: the waiting that one step of priority is worth.
    """

    max_queued: int = 10_000
    max_queued_of_owner: int | None = None
    max_attempts: int = 3
    max_skips: int = 4
    priority_seconds: float = 600.0
    result_ttl_seconds: float | None = None


@dataclass(frozen=True, slots=True)
class Transaction:
    """An open transaction under the write lock, the time now, and the rules.

    `queued` holds the number of queued jobs once it was counted: nobody else can change it before the commit,
    so that many submissions count once. Whatever changes that number must correct it or clear it.
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
        """When the result of a job that ends now is over; None where results are kept."""
        ttl = self.rules.result_ttl_seconds
        return None if ttl is None else self.now + ttl
