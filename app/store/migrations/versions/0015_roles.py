"""Let some workers decode what others have denoised.

`jobs.handover` is who denoised a job and left its decode to others. `jobs.kept_from_decoders`: a worker that
only decodes gave it back, so that only others take it. The index finds waiting decodes in any queue.
"""

from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0015"
down_revision = "0014"


def upgrade() -> None:
    op.add_column("jobs", sa.Column("handover", sa.Text))
    op.add_column(
        "jobs", sa.Column("kept_from_decoders", sa.Boolean, nullable=False, server_default=sa.false())
    )
    waiting = sa.text("status = 'queued' and latents_path is not null")
    partial: Any = {"postgresql_where": waiting, "sqlite_where": waiting}
    op.create_index("jobs_to_decode", "jobs", ["rank", "id"], **partial)
