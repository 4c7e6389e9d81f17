"""Add how a job's webhook goes, and the seconds that a job is expected to take for its key's fair share."""

from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision = "0008"


def upgrade() -> None:
    op.add_column("jobs", sa.Column("webhook", sa.Text))
    op.add_column("jobs", sa.Column("expected_seconds", sa.Double))
    queued = sa.text("status = 'queued'")
    partial: Any = {"postgresql_where": queued, "sqlite_where": queued}
    op.create_index("jobs_queued_of_owner_in_turn", "jobs", ["owner", "priority", "rank"], **partial)
    op.drop_index("jobs_queued_of_owner", "jobs")
