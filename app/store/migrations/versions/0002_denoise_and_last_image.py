"""Add how a job was denoised, and an optional last image."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    op.add_column("jobs", sa.Column("denoise", sa.Text))
    op.add_column("images", sa.Column("last_data", sa.LargeBinary))
