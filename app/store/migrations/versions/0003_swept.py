"""Add `swept_at`, when a result was deleted, so that expired jobs keep `expires_at`."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    op.add_column("jobs", sa.Column("swept_at", sa.Double))
    # Before this revision, deleting an expired result cleared its expires_at.
    op.execute(
        "update jobs set swept_at = coalesce(finished_at, created_at), expires_at = finished_at "
        "where expired and expires_at is null"
    )
    op.drop_index("jobs_by_expiry", "jobs")
    op.create_index("jobs_to_sweep", "jobs", ["swept_at", "expires_at"])
