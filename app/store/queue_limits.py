"""The limits of the queue: one function for everything that is queued for a client.

A worker that gives its job back does not ask: the job was admitted before.
"""

from sqlalchemy import Connection, text

from app.store.errors import QueueFull
from app.store.queries import queued
from app.store.transaction import Rules, Transaction

# So close to the limit of all queued jobs, submissions come one after the other (PostgreSQL).
CLOSE_TO_LIMIT = 256

COUNT_QUEUED_OF = text("""
    select count(*) from (
        select 1 from jobs where status = 'queued' and owner = :owner limit :limit
    ) own
""")
# Submissions that could pass a limit together come one after the other.
LOCK_LIMIT = text("select pg_advisory_xact_lock(hashtext('framefit queue limit'), hashtext(:owner))")


def require_room(tx: Transaction, jobs: int, owner: str | None, limit_of_owner: int | None) -> None:
    """Raise `QueueFull` unless the queue has room for so many more jobs of this owner.

    `limit_of_owner` is the limit of the owner's key and replaces the store's. The room is the caller's until
    the transaction ends.
    """
    if not jobs:
        return
    if tx.is_postgresql:
        if queued(tx.connection) + jobs > tx.rules.max_queued - CLOSE_TO_LIMIT:
            tx.execute(LOCK_LIMIT, {"owner": ""})
        if owner is not None and (limit_of_owner or tx.rules.max_queued_of_owner) is not None:
            tx.execute(LOCK_LIMIT, {"owner": owner})
    look_for_room(tx.connection, tx.rules, jobs, owner, limit_of_owner)


def look_for_room(
    connection: Connection, rules: Rules, jobs: int, owner: str | None, limit_of_owner: int | None
) -> None:
    """As `require_room`, but others may take the room at once."""
    waiting = queued(connection)
    if waiting + jobs > rules.max_queued:
        raise QueueFull(waiting, rules.max_queued)
    own_limit = limit_of_owner or rules.max_queued_of_owner
    if owner is not None and own_limit is not None:
        wanted = {"owner": owner, "limit": own_limit}
        own = connection.execute(COUNT_QUEUED_OF, wanted).scalar_one()
        if own + jobs > own_limit:
            raise QueueFull(own, own_limit, owner)
