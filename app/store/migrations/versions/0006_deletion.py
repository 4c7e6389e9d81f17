"""Add when the content of a deleted job was erased. Jobs deleted before this revision are erased now.

Erased rows stay: the indexes of lists leave them out.
"""

from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"


def upgrade() -> None:
    op.add_column("jobs", sa.Column("erased_at", sa.Double))
    waiting = sa.text("deleted_at is not null and erased_at is null")
    op.create_index("deliveries_of_job", "deliveries", ["job_id"])
    served: Any = {name: sa.text("deleted_at is null") for name in ("postgresql_where", "sqlite_where")}
    op.create_index("jobs_served", "jobs", ["id"], **served)
    op.create_index("jobs_served_of_owner", "jobs", ["owner", "id"], **served)
    op.create_index("jobs_to_erase", "jobs", ["deleted_at"], postgresql_where=waiting, sqlite_where=waiting)
