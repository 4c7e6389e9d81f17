"""Which place of pictures a service uses: decided here and nowhere else."""

from pathlib import Path

from app.artifacts.picture_folder import FOLDER, PictureFolder
from app.artifacts.pictures import Pictures
from app.store.database import Database
from app.store.database.sqlite import SqliteDatabase, sqlite_path
from app.store.pictures.table import PictureTable


def place_of_pictures(database: Database, data_folder: Path | None) -> Pictures:
    """Return the place of the pictures of the jobs in this database.

    With SQLite all processes share one host, and so a folder: in the data folder, or beside the database.
    With PostgreSQL any host may run a job, and their data folders need not be the same: the database has the
    pictures.
    """
    if isinstance(database, SqliteDatabase):
        return PictureFolder((data_folder or sqlite_path(database.url).parent) / FOLDER)
    return PictureTable(database)
