"""Pictures in a table of a PostgreSQL database: a worker of any host can read them.

The table is not that of the jobs: a picture is stored before the transaction that queues its job begins, so
that no lock is held while it travels.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from sqlalchemy import TextClause, bindparam, text

from app.artifacts.pictures import PictureMissing
from app.store.database import Database

PAGE = 500

# Not flushed alone: the server's log is one sequence, and the commit of the row that names the picture, which
# comes later, makes the picture durable, too.
PUBLISH = text("""
    with unflushed as (select set_config('synchronous_commit', 'off', true))
    insert into picture_bytes (key, data, published_at)
    select :key, :data, cast(extract(epoch from clock_timestamp()) as double precision) from unflushed
""")
READ = text("select data from picture_bytes where key = :key")
REMOVE = text("delete from picture_bytes where key in :keys").bindparams(bindparam("keys", expanding=True))
OLDER = text("""
    select key from picture_bytes
    where key > :after and published_at < extract(epoch from clock_timestamp()) - :seconds
    order by key limit :limit
""").bindparams(bindparam("limit", PAGE))


class PictureTable:
    """The table `picture_bytes`. Its methods raise `StoreUnavailable`."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def publish(self, pictures: Mapping[str, bytes]) -> None:
        """Insert the pictures. They become durable with the row that names them."""
        for key, data in pictures.items():
            self._run(PUBLISH, {"key": key, "data": data})

    def read(self, key: str) -> bytes:
        """Return a picture."""
        with self._database.reading() as connection:
            data = connection.execute(READ, {"key": key}).scalar()
        if data is None:
            raise PictureMissing(key)
        return bytes(data)

    def remove(self, keys: Sequence[str]) -> None:
        """Delete the rows of pictures."""
        if keys:
            self._run(REMOVE, {"keys": list(keys)})

    def _run(self, statement: TextClause, row: Mapping[str, Any]) -> None:
        self._database.run(lambda tx: tx.execute(statement, row))

    def keep(self, keys: Sequence[str]) -> None:
        """Do nothing: whether a row names a picture is known in the same database."""

    def not_kept(self, older_than_seconds: float) -> Iterator[str]:
        """Yield the keys of all pictures that were stored so long ago, by the server's time."""
        last = ""
        while True:
            with self._database.reading() as connection:
                wanted = {"after": last, "seconds": older_than_seconds}
                keys = list(connection.execute(OLDER, wanted).scalars())
            yield from keys
            if len(keys) < PAGE:
                return
            last = keys[-1]
