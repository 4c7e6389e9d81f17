"""Results that are past their time keep it: what was deleted is noted in a column of its own."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    op.add_column("jobs", sa.Column("swept_at", sa.Double))
    # Until now a deleted result was one that had expired and had lost the time at which it did.
    op.execute(
        "update jobs set swept_at = coalesce(finished_at, created_at), expires_at = finished_at "
        "where expired and expires_at is null"
    )
    op.drop_index("jobs_by_expiry", "jobs")
    op.create_index("jobs_to_sweep", "jobs", ["swept_at", "expires_at"])
