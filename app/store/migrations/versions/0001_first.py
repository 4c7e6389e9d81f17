"""Jobs, their images, the append-only events, and the workers."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None


def upgrade() -> None:
    _create_jobs()
    op.create_table(
        "images",
        sa.Column("job_id", sa.Text, sa.ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True),
        sa.Column("data", sa.LargeBinary, nullable=False),
    )
    op.create_table(
        "events",
        sa.Column(
            "seq",
            sa.BigInteger().with_variant(sa.Integer, "sqlite"),
            sa.Identity(always=False),
            primary_key=True,
            autoincrement=True,
        ),
        sa.Column("job_id", sa.Text, nullable=False),
        sa.Column("kind", sa.Text, nullable=False),
        sa.Column("at", sa.Double, nullable=False),
        sa.Column("data", sa.Text, nullable=False),
        sqlite_autoincrement=True,  # a number is never reused, even after old events were deleted
    )
    op.create_index("events_of_job", "events", ["job_id", "seq"])
    op.create_table(
        "workers",
        sa.Column("id", sa.Text, primary_key=True),
        sa.Column("device", sa.Text, nullable=False),
        sa.Column("device_name", sa.Text, nullable=False),
        sa.Column("job_id", sa.Text),
        sa.Column("started_at", sa.Double, nullable=False),
        sa.Column("heartbeat_at", sa.Double, nullable=False),
    )
    op.create_table(
        "deliveries",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer, "sqlite"), sa.Identity(), primary_key=True),
        sa.Column("job_id", sa.Text, nullable=False),
        sa.Column("url", sa.Text, nullable=False),
        sa.Column("outcome", sa.Text, nullable=False),
        sa.Column("due_at", sa.Double, nullable=False),
        sa.Column("attempts", sa.Integer, nullable=False),
    )
    op.create_index("deliveries_in_turn", "deliveries", ["due_at"])
    op.create_table("paused_devices", sa.Column("device_name", sa.Text, primary_key=True))


def _create_jobs() -> None:
    op.create_table(
        "jobs",
        sa.Column("id", sa.Text, primary_key=True),
        sa.Column("status", sa.Text, nullable=False),
        sa.Column("stage", sa.Text, nullable=False),
        sa.Column("progress", sa.Double, nullable=False),
        sa.Column("spec", sa.Text, nullable=False),
        sa.Column("model", sa.Text, nullable=False),
        sa.Column("priority", sa.Integer, nullable=False),
        # Time of arrival, less the head start that priority gives: the smallest rank runs first.
        sa.Column("rank", sa.Double, nullable=False),
        sa.Column("skips", sa.Integer, nullable=False),
        sa.Column("needed_bytes", sa.BigInteger),
        sa.Column("plan", sa.Text),
        sa.Column("owner", sa.Text),
        sa.Column("idempotency_key", sa.Text, unique=True),
        sa.Column("fingerprint", sa.Text, nullable=False),
        sa.Column("created_at", sa.Double, nullable=False),
        sa.Column("queued_at", sa.Double, nullable=False),
        sa.Column("started_at", sa.Double),
        sa.Column("finished_at", sa.Double),
        sa.Column("expires_at", sa.Double),
        sa.Column("expired", sa.Boolean, nullable=False),
        sa.Column("attempts", sa.Integer, nullable=False),
        sa.Column("token", sa.BigInteger, nullable=False),
        sa.Column("worker_id", sa.Text),
        sa.Column("lease_until", sa.Double),
        sa.Column("cancel_requested", sa.Boolean, nullable=False),
        sa.Column("latents_path", sa.Text),
        sa.Column("decode", sa.Text),
        sa.Column("result", sa.Text),
        sa.Column("error", sa.Text),
    )
    op.create_index("jobs_in_turn", "jobs", ["status", "rank", "id"])
    op.create_index("jobs_of_model_in_turn", "jobs", ["status", "model", "rank", "id"])
    op.create_index("jobs_by_status", "jobs", ["status"])  # a small index keeps counting cheap
    op.create_index("jobs_by_expiry", "jobs", ["expires_at"])
