"""The pictures of an older SQLite database become files: none is lost, whenever the move is interrupted."""

import os
import shutil
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path

import pytest

from app.artifacts.picture_folder import PictureFolder
from app.config import Settings
from app.store import CannotOpen, JobStore, NoSuchJob, open_store
from app.store.pictures import move

OLD_FOLDERS = sorted((Path(__file__).parents[3] / "contract").glob("data_folder_*"))
SCHEMA = Path(__file__).with_name("schemas") / "0001.sqlite.sql"
JOBS = 40
MARKER = b"m4rk3r-0f-an-0ld-p1ctur3"


def old_database(folder: Path) -> dict[str, bytes]:
    """A database of the first schema with more jobs; returns the picture of each."""
    folder.mkdir()
    with closing(sqlite3.connect(folder / "framefit.sqlite3")) as database, database:
        database.executescript(SCHEMA.read_text())
        columns = [row[1] for row in database.execute("pragma table_info(jobs)") if row[1] != "id"]
        names = ", ".join(columns)
        copied = names.replace("idempotency_key", "null")
        one = database.execute("select id from jobs where status = 'queued'").fetchone()[0]
        for number in range(JOBS):
            job_id = f"{int(one, 16) + number + 1:032x}"
            database.execute(
                f"insert into jobs (id, {names}) select ?, {copied} from jobs where id = ?", (job_id, one)
            )
            picture = MARKER + bytes([number]) * (1000 + 3000 * number)
            database.execute("insert into images values (?, ?)", (job_id, picture))
        return dict(database.execute("select job_id, data from images").fetchall())


def images_of(store: JobStore, jobs: dict[str, bytes]) -> dict[str, bytes]:
    return {job_id: store.image(job_id) for job_id in jobs}


def files_of(folder: Path) -> list[Path]:
    return [path for path in (folder / "pictures").rglob("*") if path.is_file()]


@pytest.mark.parametrize("made", OLD_FOLDERS, ids=[path.name for path in OLD_FOLDERS])
def test_the_committed_folders_of_older_versions_keep_every_image(made: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(made / "files", tmp_path / "data"))
    with closing(sqlite3.connect(folder / "framefit.sqlite3")) as database:
        if not database.execute("select 1 from sqlite_master where name = 'images'").fetchone():
            pytest.fail("a folder with pictures in files: compare its files instead")
        before = {job_id: (data, last) for job_id, data, last in database.execute("select * from images")}
    assert before
    with closing(open_store(Settings(data_dir=folder))) as store:
        store.migrate()
        after = {job_id: (store.image(job_id), store.last_image(job_id)) for job_id in before}
    assert after == before


def test_every_image_is_moved_and_no_byte_of_it_stays_in_the_database(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    jobs = old_database(folder)
    with closing(open_store(Settings(data_dir=folder))) as store:
        store.migrate()
        assert images_of(store, jobs) == jobs
        store.migrate()
        assert images_of(store, jobs) == jobs
    assert len(files_of(folder)) == len(jobs)
    for path in folder.glob("framefit.sqlite3*"):
        assert MARKER not in path.read_bytes(), path


KILLED = """
import os, signal, sys
from app.config import Settings
from app.store import open_store
from app.store.pictures import move
move.JOBS_AT_ONCE, move.BYTES_AT_ONCE = 5, 20_000
store = open_store(Settings(data_dir=sys.argv[1]))
turns = 0
def deadly(function, last):
    def call(*arguments, **named):
        global turns
        turns += 1
        if turns == last:
            os.kill(os.getpid(), signal.SIGKILL)
        return function(*arguments, **named)
    return call
if sys.argv[2] == "file":
    os.fsync = deadly(os.fsync, int(sys.argv[3]))
else:
    move._point_to_files = deadly(move._point_to_files, int(sys.argv[3]))
store.migrate()
"""


@pytest.mark.parametrize(("where", "turn"), [("file", 20), ("row", 1), ("row", 4)])
def test_a_move_that_is_killed_goes_on_at_the_next_start(where: str, turn: int, tmp_path: Path) -> None:
    folder = tmp_path / "data"
    jobs = old_database(folder)
    done = subprocess.run([sys.executable, "-c", KILLED, folder, where, str(turn)], capture_output=True)
    assert done.returncode == -signal.SIGKILL, done.stderr.decode()
    with closing(sqlite3.connect(folder / "framefit.sqlite3")) as database:
        left = database.execute("select count(*) from images").fetchone()[0]
    assert left > 0
    with closing(open_store(Settings(data_dir=folder))) as store:
        store.migrate()
        assert images_of(store, jobs) == jobs
        for path in files_of(folder):
            os.utime(path, (0, 0))
        store.sweep_pictures()
        assert images_of(store, jobs) == jobs
    assert len(files_of(folder)) == len(jobs), "what the killed move left is swept"


def test_a_process_that_finds_another_has_moved_all_meanwhile_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "data"
    jobs = old_database(folder)
    publish = PictureFolder.publish
    with (
        closing(open_store(Settings(data_dir=folder))) as slow,
        closing(open_store(Settings(data_dir=folder))) as quick,
    ):

        def overtaken(place: PictureFolder, pictures: Mapping[str, bytes]) -> None:
            publish(place, pictures)
            monkeypatch.setattr(PictureFolder, "publish", publish)
            quick.migrate()

        monkeypatch.setattr(PictureFolder, "publish", overtaken)
        slow.migrate()
        assert [images_of(store, jobs) for store in (slow, quick)] == [jobs] * 2
    assert len(files_of(folder)) == len(jobs)


def test_a_disk_without_room_refuses_the_start_with_both_numbers_and_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "data"
    jobs = old_database(folder)
    with closing(open_store(Settings(data_dir=folder))) as store:
        with monkeypatch.context() as small:
            small.setattr(move, "FULL_BYTES", 2**62)  # more than any disk has
            with pytest.raises(
                CannotOpen, match=r"images of 46 jobs.*needs 4,6[\d,]+ bytes.*and [\d,]+ are free"
            ):
                store.migrate()
        assert not (folder / "pictures").exists()
        store.migrate()
        assert images_of(store, jobs) == jobs


def test_a_move_that_cannot_write_is_told_in_one_line_and_goes_on_later(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "data"
    jobs = old_database(folder)
    (folder / "pictures").write_text("in the way")
    with closing(open_store(Settings(data_dir=folder))) as store:
        with pytest.raises(CannotOpen, match=r"framefit.sqlite3 cannot be used: .*pictures"):
            store.migrate()
        (folder / "pictures").unlink()
        with caplog.at_level("INFO"):
            store.migrate()
        assert images_of(store, jobs) == jobs
    assert [line for line in caplog.messages if line.startswith("images_moved jobs=46 bytes=")]


def test_a_new_database_has_nothing_to_move(tmp_path: Path) -> None:
    with closing(open_store(Settings(data_dir=tmp_path))) as store:
        store.migrate()
        with pytest.raises(NoSuchJob):
            store.image("0" * 32)
    with closing(sqlite3.connect(tmp_path / "framefit.sqlite3")) as database:
        assert not database.execute("select 1 from sqlite_master where name = 'images'").fetchall()
