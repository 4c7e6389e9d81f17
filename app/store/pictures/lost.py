"""Read-only check whether the images of waiting jobs are where they are kept."""

import sqlite3
from contextlib import closing
from pathlib import Path

from sqlalchemy import URL

from app.artifacts.picture_folder import FOLDER, PictureFolder
from app.store.database.sqlite import sqlite_path

NEEDED = """
    select p.key from job_pictures p join jobs j on j.id = p.job_id
    where j.status in ('queued', 'running') and j.latents_path is null
"""


def lost_images(url: URL, data_folder: Path) -> tuple[int, int]:
    """Return how many images of jobs without latents are missing, and how many are needed.

    None are needed where images lie in a database, or where the database cannot be read: that is told by
    others.
    """
    if url.get_backend_name() != "sqlite" or not sqlite_path(url).exists():
        return 0, 0
    try:
        with closing(sqlite3.connect(f"{sqlite_path(url).as_uri()}?mode=ro", uri=True)) as connection:
            keys = [key for (key,) in connection.execute(NEEDED)]
    except sqlite3.Error:
        return 0, 0
    folder = PictureFolder(data_folder / FOLDER)
    return sum(not folder.has(key) for key in keys), len(keys)
