"""Add when a job was deleted, and the job whose remix it is."""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    op.add_column("jobs", sa.Column("deleted_at", sa.Double))
    op.add_column("jobs", sa.Column("remixed_from", sa.Text))
    # Deleted jobs that have yet to be swept: few at any time, whatever the table's length.
    unswept = sa.text("deleted_at is not null and swept_at is null")
    op.create_index("jobs_deleted", "jobs", ["deleted_at"], sqlite_where=unswept, postgresql_where=unswept)
