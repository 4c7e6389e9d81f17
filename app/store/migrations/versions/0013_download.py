"""Add `jobs.download`: how far the download of the job's model is."""

import sqlalchemy as sa
from alembic import op

revision = "0013"
down_revision = "0012"


def upgrade() -> None:
    op.add_column("jobs", sa.Column("download", sa.Text))
