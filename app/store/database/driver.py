"""The most frequent statements, run by PostgreSQL's driver on a connection of SQLAlchemy's pool.

The driver prepares a statement on the server once it has run a few times on a connection. Imported only where
PostgreSQL is used, because the driver is an extra.
"""

from collections.abc import Mapping
from typing import Any

import psycopg
from psycopg.rows import dict_row
from sqlalchemy import Connection
from sqlalchemy.exc import DBAPIError

from app.store.database.refusals import READ_ONLY_STATE
from app.store.transaction import Statement

CURSOR = "framefit cursor"


def first_row(
    connection: Connection, statement: Statement, parameters: Mapping[str, Any]
) -> dict[str, Any] | None:
    """Run a statement; return its first row by column, or None. Raises `DBAPIError`.

    If the connection has broken or is read-only, the pool drops it and the connections beside it.
    """
    pooled = connection.connection
    cursor = pooled.info.get(CURSOR)
    if cursor is None:
        # https://www.psycopg.org/psycopg3/docs/advanced/cursors.html: the parameters are the server's $1, $2.
        driver: Any = pooled.driver_connection
        cursor = pooled.info[CURSOR] = psycopg.RawCursor(driver, row_factory=dict_row)
    values = [parameters[name] for name in statement.names]
    try:
        row: dict[str, Any] | None = cursor.execute(statement.sql, values).fetchone()
    except psycopg.Error as error:
        if cursor.connection.closed or error.sqlstate == READ_ONLY_STATE:
            connection.invalidate(error)
            connection.engine.dispose()
        raise DBAPIError(statement.sql, values, error) from error
    return row
