"""Add how attempts at a job ended since its last durable progress."""

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"


def upgrade() -> None:
    op.add_column("jobs", sa.Column("setbacks", sa.Text))
