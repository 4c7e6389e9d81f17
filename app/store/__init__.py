"""The job table: the only place where a job's state changes, and the only SQL of the service.

database    connections, migrations, the one writer thread
health      a look from outside that changes nothing
transaction what an operation works in, and the queue's rules
rows        columns, JSON, the append to the history
queries     what is asked without changing anything
errors      what it raises on purpose
intake      what clients do: hand in, cancel, ask again
leases      what workers do: claim, report, finish, give back
workers     who is alive, and on what device
deliveries  webhooks that are still to be told
retention   the end of results
jobstore    JobStore: all of it, each operation in its transaction
"""

from app.store.errors import (
    IdempotencyConflict,
    NoSuchJob,
    QueueFull,
    ResultExpired,
    StoreError,
    StoreUnavailable,
    WrongState,
)
from app.store.intake import Submission
from app.store.jobstore import JobStore, open_store
from app.store.transaction import Rules

__all__ = [
    "IdempotencyConflict",
    "JobStore",
    "NoSuchJob",
    "QueueFull",
    "ResultExpired",
    "Rules",
    "StoreError",
    "StoreUnavailable",
    "Submission",
    "WrongState",
    "open_store",
]
