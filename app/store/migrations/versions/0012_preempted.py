"""Note how often a job gave way to one of higher priority, and with how many steps."""

import sqlalchemy as sa
from alembic import op

revision = "0012"
down_revision = "0011"


def upgrade() -> None:
    op.add_column("jobs", sa.Column("preempted", sa.Text))
