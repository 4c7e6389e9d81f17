"""Add the indexes of ended jobs by model or owner, and status: the lists of a long history.

They hold ended jobs alone, so that neither a submission nor a claim writes into them.
"""

from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0014"
down_revision = "0013"


def upgrade() -> None:
    ended = sa.text("finished_at is not null and deleted_at is null")
    only: Any = {"postgresql_where": ended, "sqlite_where": ended}
    op.create_index("jobs_ended_of_model", "jobs", ["model", "status", "id"], **only)
    op.create_index("jobs_ended_of_owner", "jobs", ["owner", "status", "id"], **only)
