"""The job table. This package holds all SQL of the service, and only it changes a job's state.

It imports no torch and knows no HTTP.

database    connections, transactions and migrations: SQLite and PostgreSQL
transaction the transaction passed to every write, and the queue's limits
rows        conversion between rows and jobs; the append to the event history
queries     read-only queries
queue_limits  how many jobs may wait, of all and of one key
errors      the errors the store raises
intake      what clients do: submit, cancel, queue again
claims      which queued job a worker gets
leases      what workers do with a job: report, finish, release
backfill    running smaller jobs while a large one waits for memory
workers     registered workers and their devices
deliveries  the outbox of webhooks
pictures    the pictures of jobs: stored before a job is, read, removed and swept
fair_share  the place of a job among those of other keys
upkeep      the check of a database; expiry of results and leases, deletion of jobs; stored counters
jobstore    JobStore: every operation above, each in its own transaction
"""

from app.store.errors import (
    CannotOpen,
    DamagedSnapshot,
    DataFolderUnusable,
    IdempotencyConflict,
    ImageMissing,
    ImageUnreadable,
    JobDeleted,
    NewerSchema,
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
    "CannotOpen",
    "DamagedSnapshot",
    "DataFolderUnusable",
    "IdempotencyConflict",
    "ImageMissing",
    "ImageUnreadable",
    "JobDeleted",
    "JobStore",
    "NewerSchema",
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
