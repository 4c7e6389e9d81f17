"""Add what lets many hosts write at once, and what keeps the cost of a long queue constant.

`new_events` (PostgreSQL) holds events until they get their numbers. `job_counts` holds the number of jobs by
status, kept by triggers; on PostgreSQL in shards, so that concurrent transactions rarely meet in one row.
`paused_workers` replaces `paused_devices`: two hosts have devices of one name. `instances` tells services of
one host name apart.
"""

from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"

ADD = """
    insert into job_counts (shard, status, jobs) values ({shard}, {status}, {change})
    on conflict (shard, status) do update set jobs = job_counts.jobs + ({change})
"""
SHARD = "pg_backend_pid() % 64"


def upgrade() -> None:
    _add_indexes()
    op.create_table("paused_workers", sa.Column("worker_id", sa.Text, primary_key=True))
    # A device's name still matches: its worker gets a new id.
    op.execute("insert into paused_workers (worker_id) select device_name from paused_devices")
    op.drop_table("paused_devices")
    op.create_table(
        "instances",
        sa.Column("id", sa.Text, primary_key=True),
        sa.Column("host", sa.Text, nullable=False),
        sa.Column("process", sa.Text, nullable=False),
        sa.Column("started_at", sa.Double, nullable=False),
    )
    op.create_table(
        "job_counts",
        sa.Column("shard", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("status", sa.Text, primary_key=True),
        sa.Column("jobs", sa.BigInteger, nullable=False),
    )
    op.execute(
        "insert into job_counts (shard, status, jobs) select 0, status, count(*) from jobs group by status"
    )
    if op.get_bind().dialect.name == "postgresql":
        _count_on_postgresql()
        op.create_table(
            "new_events",
            sa.Column("id", sa.BigInteger, sa.Identity(always=False), primary_key=True),
            sa.Column("job_id", sa.Text, nullable=False),
            sa.Column("kind", sa.Text, nullable=False),
            sa.Column("at", sa.Double, nullable=False),
            sa.Column("data", sa.Text, nullable=False),
        )
    else:
        _count_on_sqlite()


def _add_indexes() -> None:
    queued = sa.text("status = 'queued'")
    needs = sa.text("coalesce(needed_bytes, 0)")
    partial: Any = {"postgresql_where": queued, "sqlite_where": queued}
    op.create_index("jobs_by_need", "jobs", ["model", needs], **partial)
    op.create_index("jobs_queued_of_owner", "jobs", ["owner"], **partial)
    op.create_index("jobs_of_owner", "jobs", ["owner", "id"])
    op.drop_index("jobs_by_status", "jobs")
    op.create_index("jobs_of_status", "jobs", ["status", "id"])


def _count_on_sqlite() -> None:
    old = ADD.format(shard=0, status="old.status", change=-1)
    new = ADD.format(shard=0, status="new.status", change=1)
    op.execute(f"create trigger job_counted after insert on jobs begin {new}; end")
    op.execute(f"create trigger job_uncounted after delete on jobs begin {old}; end")
    op.execute(
        "create trigger job_recounted after update of status on jobs when old.status <> new.status "
        f"begin {old}; {new}; end"
    )


def _count_on_postgresql() -> None:
    one = ADD.format(shard=SHARD, status="{status}", change="{change}")
    old, new = one.format(status="old.status", change=-1), one.format(status="new.status", change=1)
    # Statements that insert many jobs count them at once.
    op.execute(f"""
        create function count_new_jobs() returns trigger language plpgsql as $$ begin
            insert into job_counts (shard, status, jobs)
                select {SHARD}, status, count(*) from new_jobs group by status order by status
            on conflict (shard, status) do update set jobs = job_counts.jobs + excluded.jobs;
            return null;
        end $$
    """)
    op.execute(f"""
        create function uncount_job() returns trigger language plpgsql as $$ begin
            {old};
            return null;
        end $$
    """)
    # Two transactions of one shard take the rows in the same order.
    op.execute(f"""
        create function recount_job() returns trigger language plpgsql as $$ begin
            if old.status < new.status then
                {old};
                {new};
            else
                {new};
                {old};
            end if;
            return null;
        end $$
    """)
    op.execute(
        "create trigger job_counted after insert on jobs referencing new table as new_jobs "
        "for each statement execute function count_new_jobs()"
    )
    op.execute(
        "create trigger job_uncounted after delete on jobs for each row execute function uncount_job()"
    )
    op.execute(
        "create trigger job_recounted after update of status on jobs for each row "
        "when (old.status is distinct from new.status) execute function recount_job()"
    )
