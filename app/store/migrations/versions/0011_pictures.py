"""Take the pictures out of the rows of jobs: `job_pictures` has their keys and sizes.

On PostgreSQL the table `images` becomes `picture_bytes`; the pictures stay where they are on the disk. On
SQLite pictures are files: `app.store.pictures.move` writes those of `images` and removes that table.
"""

import sqlalchemy as sa
from alembic import op

revision = "0011"
down_revision = "0010"

NEW_KEY = "replace(cast(gen_random_uuid() as text), '-', '')"


def upgrade() -> None:
    op.create_table(
        "job_pictures",
        sa.Column("key", sa.Text, primary_key=True),
        sa.Column("job_id", sa.Text, sa.ForeignKey("jobs.id", ondelete="CASCADE"), nullable=False),
        sa.Column("field", sa.Text, nullable=False),  # of the request: "image" or "last_image"
        sa.Column("bytes", sa.BigInteger, nullable=False),
    )
    op.create_index("pictures_of_job", "job_pictures", ["job_id", "field"])
    if op.get_bind().dialect.name == "postgresql":
        _rename_on_postgresql()
    elif op.get_bind().execute(sa.text("select 1 from images limit 1")).first() is None:
        op.drop_table("images")


def _rename_on_postgresql() -> None:
    op.drop_constraint("images_pkey", "images", type_="primary")
    op.drop_constraint("images_job_id_fkey", "images", type_="foreignkey")
    op.add_column("images", sa.Column("key", sa.Text))
    op.add_column("images", sa.Column("field", sa.Text))
    op.add_column("images", sa.Column("published_at", sa.Double))
    op.execute(f"update images set key = {NEW_KEY}, field = 'image'")
    op.execute(
        "insert into images (job_id, data, key, field) "
        f"select job_id, last_data, {NEW_KEY}, 'last_image' from images where last_data is not null"
    )
    # A column that is dropped keeps its bytes as long as its row lives.
    op.execute("update images set last_data = null where last_data is not null")
    op.execute(
        "insert into job_pictures (key, job_id, field, bytes) "
        "select key, job_id, field, octet_length(data) from images"
    )
    op.execute("update images set published_at = extract(epoch from clock_timestamp())")
    for name in ("job_id", "last_data", "field"):
        op.drop_column("images", name)
    op.alter_column("images", "published_at", nullable=False)
    op.rename_table("images", "picture_bytes")
    op.create_primary_key("picture_bytes_pkey", "picture_bytes", ["key"])
