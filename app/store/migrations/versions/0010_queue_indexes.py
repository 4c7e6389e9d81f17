"""Let a claim write less.

`job_counts` counts queued and running jobs together, as `open`: a claim changes no count. On PostgreSQL the
indexes that a claim walks along hold queued jobs alone, and are cleaned in time: a claim reads past the
entries of all jobs that were claimed since. SQLite would prefer other indexes to such partial ones.
"""

import sqlalchemy as sa
from alembic import op

revision = "0010"
down_revision = "0009"

ADD = """
    insert into job_counts (shard, status, jobs) values ({shard}, {status}, {change})
    on conflict (shard, status) do update set jobs = job_counts.jobs + ({change})
"""
SHARD = "pg_backend_pid() % 64"
COUNTED_AS = "(case when {status} in ('queued', 'running') then 'open' else {status} end)"


def upgrade() -> None:
    of_row = COUNTED_AS.format(status="status")
    op.execute("delete from job_counts")
    op.execute(
        "insert into job_counts (shard, status, jobs) "
        f"select 0, {of_row}, count(*) from jobs group by {of_row}"
    )
    if op.get_bind().dialect.name == "postgresql":
        _count_on_postgresql()
        _keep_queued_jobs_alone()
    else:
        _count_on_sqlite()


def _count_on_sqlite() -> None:
    before, after = (COUNTED_AS.format(status=f"{row}.status") for row in ("old", "new"))
    old = ADD.format(shard=0, status=before, change=-1)
    new = ADD.format(shard=0, status=after, change=1)
    for name, event, change in (
        ("job_counted", "after insert on jobs", new),
        ("job_uncounted", "after delete on jobs", old),
        ("job_recounted", f"after update of status on jobs when {before} <> {after}", f"{old}; {new}"),
    ):
        op.execute(f"drop trigger {name}")
        op.execute(f"create trigger {name} {event} begin {change}; end")


def _count_on_postgresql() -> None:
    before, after = (COUNTED_AS.format(status=f"{row}.status") for row in ("old", "new"))
    old = ADD.format(shard=SHARD, status=before, change=-1)
    new = ADD.format(shard=SHARD, status=after, change=1)
    of_row = COUNTED_AS.format(status="status")
    op.execute(f"""
        create or replace function count_new_jobs() returns trigger language plpgsql as $$ begin
            insert into job_counts (shard, status, jobs)
                select {SHARD}, {of_row}, count(*) from new_jobs group by {of_row} order by {of_row}
            on conflict (shard, status) do update set jobs = job_counts.jobs + excluded.jobs;
            return null;
        end $$
    """)
    op.execute(f"""
        create or replace function uncount_job() returns trigger language plpgsql as $$ begin
            {old};
            return null;
        end $$
    """)
    # Two transactions of one shard take the rows in the same order.
    op.execute(f"""
        create or replace function recount_job() returns trigger language plpgsql as $$ begin
            if {before} < {after} then
                {old};
                {new};
            else
                {new};
                {old};
            end if;
            return null;
        end $$
    """)
    op.execute("drop trigger job_recounted on jobs")
    op.execute(
        "create trigger job_recounted after update of status on jobs for each row "
        f"when ({before} is distinct from {after}) execute function recount_job()"
    )


def _keep_queued_jobs_alone() -> None:
    for name, columns in (
        ("jobs_in_turn", ["rank", "id"]),
        ("jobs_of_model_in_turn", ["model", "rank", "id"]),
    ):
        op.drop_index(name, "jobs")
        op.create_index(name, "jobs", columns, postgresql_where=sa.text("status = 'queued'"))
    # The server's own rule, a fifth of the table, would let 200,000 entries of a long queue wait.
    op.execute(
        "alter table jobs set (autovacuum_vacuum_scale_factor = 0.01, autovacuum_vacuum_threshold = 1000)"
    )
