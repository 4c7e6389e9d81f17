"""Backups of real data folders, made while others write, and put back."""

import json
import os
import shutil
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest

from app.config import Settings
from app.jobs import JobSpec, JobStatus
from app.service import backup
from app.service.backup import DATABASE, DUMP, MANIFEST, BackupRefused, make_backup, restore_backup
from app.store import JobStore, open_store

LATENTS, VIDEO = b"latents" * 1000, b"video" * 1000


@pytest.fixture
def settings(tmp_path: Path, migrated_sqlite: Path) -> Settings:
    """A data folder with a database of the newest schema."""
    data = tmp_path / "data"
    data.mkdir()
    shutil.copy(migrated_sqlite, data / DATABASE)
    return Settings(data_dir=data)


@pytest.fixture
def store(settings: Settings) -> Iterator[JobStore]:
    with closing(open_store(settings)) as opened:
        yield opened


@pytest.fixture
def job_id(settings: Settings, store: JobStore, make_spec: Callable[..., JobSpec], picture: bytes) -> str:
    """A job that has ended, with its files beside what a service leaves in its folder."""
    store.register_worker("host/cpu/1", {"name": "cpu"})
    job = store.add(make_spec(), picture)
    claim = store.claim("host/cpu/1", models=["tiny"])
    assert claim is not None
    folder = settings.jobs_dir / job.id
    folder.mkdir(parents=True)
    (folder / "latents.safetensors").write_bytes(LATENTS)
    (folder / "video.mp4").write_bytes(VIDEO)
    (folder / "video.mp4.part").write_bytes(b"half")
    store.checkpoint(job.id, claim.token, f"jobs/{job.id}/latents.safetensors", {"seconds": 1.0})
    result = {"video_path": f"jobs/{job.id}/video.mp4", "bytes": len(VIDEO), "thumbnail": False}
    store.finish(job.id, claim.token, status=JobStatus.SUCCEEDED, result=result)
    (settings.data_dir / "profiles").mkdir()
    (settings.data_dir / "profiles" / "learned.json").write_text("{}")
    (settings.data_dir / "models" / "tiny").mkdir(parents=True)
    (settings.data_dir / "models" / "tiny" / "weights").write_text("many")
    (settings.data_dir / "instance").write_text("0a1b2c3d\n")
    (settings.data_dir / "service.json").write_text("{}")
    return job.id


@pytest.mark.parametrize("link", [False, True])
def test_what_is_restored_is_what_was_backed_up(
    settings: Settings, store: JobStore, job_id: str, picture: bytes, tmp_path: Path, link: bool
) -> None:
    made = make_backup(settings, tmp_path / "backup", link=link)
    assert made.missing == ()
    restored = Settings(data_dir=tmp_path / "restored")
    restore_backup(restored, tmp_path / "backup")
    with closing(open_store(restored)) as again:
        again.migrate(must_write=True)
        assert again.get(job_id) == store.get(job_id)
        assert again.image(job_id) == picture
    folder = restored.jobs_dir / job_id
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == {
        "latents.safetensors": LATENTS,
        "video.mp4": VIDEO,
    }
    assert (restored.data_dir / "instance").read_text() == "0a1b2c3d\n"
    assert (restored.data_dir / "profiles" / "learned.json").exists()
    assert json.loads((restored.data_dir / "last_run.json").read_text())["running"] is False
    assert not (restored.data_dir / "service.json").exists()
    assert not (restored.data_dir / "models").exists()


def test_a_linked_file_takes_no_space_and_outlives_its_deletion(
    settings: Settings, job_id: str, tmp_path: Path
) -> None:
    make_backup(settings, tmp_path / "backup", link=True)
    video = settings.jobs_dir / job_id / "video.mp4"
    copy = tmp_path / "backup" / "jobs" / job_id / "video.mp4"
    assert video.samefile(copy)
    shutil.rmtree(settings.jobs_dir)
    assert copy.read_bytes() == VIDEO


def test_the_models_are_part_of_a_backup_that_asks_for_them(
    settings: Settings, job_id: str, tmp_path: Path
) -> None:
    assert job_id
    assert "models/tiny/weights" in make_backup(settings, tmp_path / "backup", models=True).files


def test_a_backup_is_the_state_of_one_moment_while_others_write(
    settings: Settings, make_spec: Callable[..., JobSpec], picture: bytes, tmp_path: Path
) -> None:
    stop, added = threading.Event(), []

    def add() -> None:
        with closing(open_store(settings)) as own:
            while not stop.is_set():
                added.append(own.add(make_spec(), picture).id)

    thread = threading.Thread(target=add)
    thread.start()
    try:
        backups = []
        for number in range(3):
            while len(added) < 20 * (number + 1) and thread.is_alive():
                stop.wait(0.001)
            before = len(added)
            made = make_backup(settings, tmp_path / f"backup{number}")
            backups.append((before, made.jobs or 0, len(added) + 1))
    finally:
        stop.set()
        thread.join()
    assert all(before <= jobs <= after for before, jobs, after in backups), backups
    for number, (_, jobs, _) in enumerate(backups):
        with closing(sqlite3.connect(tmp_path / f"backup{number}" / DATABASE)) as copy:
            (events,) = copy.execute("select count(*) from events").fetchone()
        assert events == jobs, "a job and its event are one transaction"


def test_a_file_that_jobs_name_and_the_folder_does_not_have_is_told(
    settings: Settings, job_id: str, tmp_path: Path
) -> None:
    (settings.jobs_dir / job_id / "video.mp4").unlink()
    assert make_backup(settings, tmp_path / "backup").missing == (f"jobs/{job_id}/video.mp4",)


@pytest.mark.usefixtures("job_id")
def test_a_picture_that_moves_between_its_places_meanwhile_is_copied(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was not yet in the one when that was listed, and no longer in the other."""
    listed = backup._kept_files

    def without_pictures(data: Path, database: Path | None, *, models: bool) -> Iterator[Path]:
        return (path for path in listed(data, database, models=models) if "pictures" not in path.parts)

    monkeypatch.setattr(backup, "_kept_files", without_pictures)
    made = make_backup(settings, tmp_path / "backup")
    (picture,) = (path for path in (settings.data_dir / "pictures").rglob("*") if path.is_file())
    assert made.missing == ()
    assert (tmp_path / "backup" / "pictures" / picture.name).read_bytes() == picture.read_bytes()


@pytest.mark.usefixtures("job_id")
def test_a_picture_that_is_lost_is_told(settings: Settings, tmp_path: Path) -> None:
    (picture,) = (path for path in (settings.data_dir / "pictures").rglob("*") if path.is_file())
    picture.unlink()
    assert make_backup(settings, tmp_path / "backup").missing == (f"pictures/{picture.name}",)


def test_a_database_of_another_name_is_copied_once_and_restored_without_its_old_log(
    settings: Settings, make_spec: Callable[..., JobSpec], picture: bytes, tmp_path: Path
) -> None:
    """Its write-ahead log belongs to the file that goes on changing."""
    url = f"sqlite:///{settings.data_dir / 'jobs.db'}"
    shutil.move(settings.data_dir / DATABASE, settings.data_dir / "jobs.db")
    named = Settings(data_dir=settings.data_dir, database_url=url)
    with closing(open_store(named)) as store:
        store.add(make_spec(), picture)
        made = make_backup(named, tmp_path / "backup")
        store.add(make_spec(), picture)
    assert [name for name in made.files if "jobs.db" in name] == []
    restored = Settings(
        data_dir=tmp_path / "restored", database_url=f"sqlite:///{tmp_path / 'restored' / 'jobs.db'}"
    )
    restore_backup(restored, tmp_path / "backup")
    with closing(open_store(restored)) as again:
        assert again.counts()[JobStatus.QUEUED] == 1


@pytest.mark.usefixtures("job_id")
def test_restored_pictures_are_readable_by_their_owner_only(settings: Settings, tmp_path: Path) -> None:
    make_backup(settings, tmp_path / "backup")
    restore_backup(Settings(data_dir=tmp_path / "restored"), tmp_path / "backup")
    folder = tmp_path / "restored" / "pictures"
    modes = {path.stat().st_mode & 0o077 for path in (folder, *folder.rglob("*"))}
    assert modes == {0}


@pytest.mark.usefixtures("job_id")
def test_the_picture_of_an_expired_job_is_not_missing(settings: Settings, tmp_path: Path) -> None:
    (picture,) = (path for path in (settings.data_dir / "pictures").rglob("*") if path.is_file())
    picture.unlink()
    with closing(sqlite3.connect(settings.data_dir / DATABASE)) as database, database:
        database.execute("update jobs set expired = 1")
    assert make_backup(settings, tmp_path / "backup").missing == ()


def damaged(backup: Path, job_id: str) -> None:
    (backup / "jobs" / job_id / "video.mp4").write_bytes(VIDEO[:-1] + b"x")


def without_a_file(backup: Path, job_id: str) -> None:
    (backup / "jobs" / job_id / "video.mp4").unlink()


def without_its_list(backup: Path, _job_id: str) -> None:
    (backup / MANIFEST).unlink()


def with_half_a_list(backup: Path, _job_id: str) -> None:
    (backup / MANIFEST).write_text((backup / MANIFEST).read_text()[:100])


def of_a_newer_version(backup: Path, _job_id: str) -> None:
    stored = json.loads((backup / MANIFEST).read_text())
    (backup / MANIFEST).write_text(json.dumps({**stored, "revision": "9999", "version": "9.0"}))


def that_names_other_folders(backup: Path, _job_id: str) -> None:
    stored = json.loads((backup / MANIFEST).read_text())
    stored["files"]["../outside"] = {"bytes": 0, "sha256": None}
    (backup / MANIFEST).write_text(json.dumps(stored))


@pytest.mark.parametrize(
    ("spoil", "told"),
    [
        (damaged, "video.mp4 is damaged"),
        (without_a_file, "video.mp4 is missing"),
        (without_its_list, "is no complete backup"),
        (with_half_a_list, "cannot be read"),
        (of_a_newer_version, "install that version"),
        (that_names_other_folders, "lies outside the backup"),
    ],
)
def test_a_backup_that_is_not_whole_is_refused_and_nothing_is_written(
    settings: Settings, job_id: str, tmp_path: Path, spoil: Callable[[Path, str], None], told: str
) -> None:
    make_backup(settings, tmp_path / "backup")
    spoil(tmp_path / "backup", job_id)
    with pytest.raises(BackupRefused, match=told):
        restore_backup(Settings(data_dir=tmp_path / "restored"), tmp_path / "backup")
    assert not (tmp_path / "restored").exists()


def test_a_backup_goes_into_an_empty_folder_only(settings: Settings, job_id: str, tmp_path: Path) -> None:
    make_backup(settings, tmp_path / "backup")
    with pytest.raises(BackupRefused, match="not empty"):
        make_backup(settings, tmp_path / "backup")
    with pytest.raises(BackupRefused, match="in the data folder itself"):
        make_backup(settings, settings.data_dir / "backup")
    with pytest.raises(BackupRefused, match=r"the data folder .* is not empty"):
        restore_backup(settings, tmp_path / "backup")
    assert (settings.jobs_dir / job_id / "video.mp4").exists()


def test_with_postgresql_the_folder_is_copied_and_the_dump_asked_for(
    settings: Settings, job_id: str, tmp_path: Path
) -> None:
    (settings.data_dir / DATABASE).unlink()
    address = "postgresql+psycopg://me:secret@db.example.org/framefit"
    environ = {**os.environ, "FRAMEFIT_DATABASE_URL": address, "FRAMEFIT_DATA_DIR": str(settings.data_dir)}

    def run(*arguments: str) -> str:
        command = [sys.executable, "-m", "app", *arguments]
        done = subprocess.run(command, env=environ, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert "secret" not in done.stdout
        return done.stdout

    told = run("backup", str(tmp_path / "backup"))
    assert f"--file=NEW_FOLDER/{DUMP} 'postgresql://me@db.example.org/framefit'" in told
    (tmp_path / "with").mkdir()
    (tmp_path / "with" / DUMP).write_text("")
    assert "pg_dump" not in run("backup", str(tmp_path / "with"))
    told = run("restore", str(tmp_path / "with"), "--data-dir", str(tmp_path / "restored"))
    assert "pg_restore" in told
    assert (tmp_path / "restored" / "jobs" / job_id / "video.mp4").read_bytes() == VIDEO


def test_a_refusal_is_one_line(tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "app",
        "backup",
        str(tmp_path / "backup"),
        "--data-dir",
        str(tmp_path / "no"),
    ]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.startswith("framefit backup: there is no data folder")
    assert len(done.stderr.splitlines()) == 1
