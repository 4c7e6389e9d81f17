"""Add when a job was deleted, and the job whose remix it is."""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    op.add_column("jobs", sa.Column("deleted_at", sa.Double))
    op.add_column("jobs", sa.Column("remixed_from", sa.Text))
