"""A start that a database or a folder prevents says in one line what is wrong, where, and what to do."""

import os
import sqlite3
import subprocess
import sys
import tempfile
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest
from roots_rights import without_roots_rights
from sqlalchemy import create_engine, make_url, text

from app.config import ConfigError, Settings
from app.service.data_folder import OWN, DataFolderRefused
from app.service.processes import run_service
from app.store import CannotOpen, NewerSchema, StoreError
from app.store.database import postgresql, sqlite

FILE = "framefit.sqlite3"


def not_a_database(folder: Path, _schema: Path) -> None:
    (folder / FILE).write_bytes(b"this is a text, and a long one\n" * 500)


def truncated(folder: Path, schema: Path) -> None:
    (folder / FILE).write_bytes(schema.read_bytes()[:6000])


def malformed_page(folder: Path, schema: Path) -> None:
    content = bytearray(schema.read_bytes())
    content[100:4096] = b"\xff" * 3996  # the first page holds the schema
    (folder / FILE).write_bytes(content)


def foreign(folder: Path, _schema: Path) -> None:
    with closing(sqlite3.connect(folder / FILE)) as connection:
        connection.execute("create table jobs (title text)")
        connection.commit()


def newer(folder: Path, schema: Path) -> None:
    (folder / FILE).write_bytes(schema.read_bytes())
    with closing(sqlite3.connect(folder / FILE)) as connection:
        connection.execute("update alembic_version set version_num = '9999'")
        connection.commit()


def read_only_file(folder: Path, schema: Path) -> None:
    (folder / FILE).write_bytes(schema.read_bytes())
    (folder / FILE).chmod(0o400)


def folder_instead_of_file(folder: Path, _schema: Path) -> None:
    (folder / FILE).mkdir()


SICK_FILES = [
    (not_a_database, CannotOpen, "not a database", "backup"),
    (truncated, CannotOpen, "malformed", "backup"),
    (malformed_page, CannotOpen, "malformed", "backup"),
    (foreign, CannotOpen, "already exists", "FRAMEFIT_DATABASE_URL"),
    (newer, NewerSchema, "newer version", "install that version"),
    (read_only_file, CannotOpen, "readonly", "let the user"),
    (folder_instead_of_file, CannotOpen, "unable to open", "FRAMEFIT_DATA_DIR"),
]


@pytest.mark.parametrize(
    ("spoil", "kind", "what", "remedy"), SICK_FILES, ids=[one[0].__name__ for one in SICK_FILES]
)
def test_a_sick_file_is_refused_with_its_place_and_the_remedy(
    spoil: Callable[[Path, Path], None],
    kind: type[Exception],
    what: str,
    remedy: str,
    tmp_path: Path,
    migrated_sqlite: Path,
) -> None:
    spoil(tmp_path, migrated_sqlite)
    with without_roots_rights():
        line = refusal(tmp_path, kind)
    for part in (str(tmp_path / FILE), what, remedy):
        assert part in line


def test_a_locked_file_is_refused_with_the_remedy(
    tmp_path: Path, migrated_sqlite: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sqlite, "BUSY_TIMEOUT_SECONDS", 0.1)
    (tmp_path / FILE).write_bytes(migrated_sqlite.read_bytes())
    with closing(sqlite3.connect(tmp_path / FILE, isolation_level=None)) as intruder:
        intruder.execute("begin immediate")
        line = refusal(tmp_path, CannotOpen)
    assert "locked" in line
    assert "end that program" in line


def refusal(folder: Path, kind: type[Exception], **settings: object) -> str:
    """The only line of a start that fails."""
    with pytest.raises(kind) as raised:
        run_service(Settings(data_dir=folder, port=0, **settings), lambda _url: None)  # type: ignore[arg-type]
    line = str(raised.value)
    assert "\n" not in line
    assert len(line) < 600
    return line


def a_file(place: Path) -> Path:
    place.write_text("a file")
    return place


def below_a_file(place: Path) -> Path:
    return a_file(place) / "data"


def no_permission(place: Path) -> Path:
    place.mkdir(mode=0o500)
    return place


def of_another_user(place: Path) -> Path:
    place.mkdir(mode=0o755)
    os.chown(place, 12345, 12345)
    return place


def below_another_users(place: Path) -> Path:
    return of_another_user(place) / "data"


def dangling_link(place: Path) -> Path:
    place.symlink_to(place.with_name("nowhere"))
    return place


def too_long(place: Path) -> Path:
    return place / ("n" * 300)


FOLDERS = [
    (a_file, "is a file"),
    (below_a_file, "lies below one"),
    (no_permission, "may not be written to by user"),
    (of_another_user, f"as root, run chown -R {os.geteuid()}:{os.getegid()} "),
    (below_another_users, "&& chown -R"),
    (dangling_link, "is a link to"),
    (too_long, "File name too long"),
]


@pytest.mark.parametrize(("make", "what"), FOLDERS, ids=[one[0].__name__ for one in FOLDERS])
def test_an_impossible_folder_is_refused_with_its_place(
    make: Callable[[Path], Path], what: str, tmp_path: Path
) -> None:
    if make in (of_another_user, below_another_users) and os.getuid():
        pytest.skip("only root can give a folder away")
    place = make(tmp_path / "place")
    with without_roots_rights():
        line = refusal(place, DataFolderRefused)
    assert str(place) in line
    assert what in line


@pytest.mark.parametrize("name", OWN)
def test_what_another_user_left_in_the_folder_is_named_with_the_command_that_helps(
    name: str, tmp_path: Path
) -> None:
    if os.getuid():
        pytest.skip("only root can give a file away")
    left = tmp_path / name
    if name in ("jobs", "models", "profiles", "pictures", "pictures/new"):
        left.mkdir(parents=True)
    else:
        left.write_text("")
    os.chown(left, 12345, 12345)
    left.chmod(0o700 if left.is_dir() else 0o600)
    with without_roots_rights():
        line = refusal(tmp_path, DataFolderRefused)
    assert f"{left} is user 12345's" in line
    assert f"chown -R {os.geteuid()}:{os.getegid()} {tmp_path}" in line


AS_ANOTHER = """
import os, sys
from pathlib import Path
from app.cli.operation import processes
from app.service.data_folder import locked_data_folder, prepare_data_folder
os.setgroups([])
os.setgid(0)
os.setuid(int(sys.argv[2]))
processes._start_process(None)
folder = Path(sys.argv[1])
prepare_data_folder(folder)
(folder / "jobs").mkdir(exist_ok=True)
with locked_data_folder(folder), (folder / "database").open("a") as file:
    file.write(sys.argv[2])
    (folder / "jobs" / sys.argv[2]).mkdir()
"""


def test_a_user_of_any_id_in_group_0_can_use_what_another_one_made() -> None:
    if os.getuid():
        pytest.skip("only root can be another user")
    with tempfile.TemporaryDirectory() as place:  # pytest's own folders are closed to others
        folder = Path(place)
        os.chown(folder, 10001, 0)
        folder.chmod(0o775)
        for user in ("10001", "23456"):
            command = [sys.executable, "-c", AS_ANOTHER, place, user]
            done = subprocess.run(command, capture_output=True, text=True)
            assert done.returncode == 0, done.stderr
        assert (folder / "database").read_text() == "1000123456"
        assert {path.name for path in (folder / "jobs").iterdir()} == {"10001", "23456"}


def test_a_path_that_sqlite_cannot_open_is_refused(tmp_path: Path) -> None:
    place = tmp_path
    while len(os.fsencode(place / FILE)) <= 512:
        place /= "n" * 60
    assert "at most 504" in refusal(place, ConfigError)


def test_postgresql_that_cannot_be_used_is_refused_with_the_remedy(
    empty_postgres: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(postgresql, "CONNECT_TIMEOUT_SECONDS", 5)
    url = make_url(empty_postgres)
    admin = create_engine(empty_postgres, isolation_level="AUTOCOMMIT")
    with admin.connect() as connection:
        rules = Path(str(connection.execute(text("show hba_file")).scalar()))
        before = rules.read_text()
        rules.write_text(f"local all needs_password scram-sha-256\n{before}")
        for statement in (
            "select pg_reload_conf()",
            "create role needs_password login password 'right'",
            "create role reader login",
        ):
            connection.execute(text(statement))
    try:
        nobody_there = "postgresql+psycopg://me:secret@127.0.0.1:1/db"
        wrong_password = url.set(username="needs_password", password="secret")
        cases = [
            (nobody_there, "refused", "start the server"),
            (wrong_password, "authentication failed", "check user and password"),
            (url.set(database="nonesuch"), "does not exist", "createdb"),
            (url.set(username="reader"), "permission denied", "grant create"),
        ]
        for address, what, remedy in cases:
            full = make_url(address).render_as_string(hide_password=False)
            line = refusal(tmp_path, StoreError, database_url=full)
            assert what in line
            assert remedy in line
            assert f"/{make_url(address).database}" in line
            assert "secret" not in line
    finally:
        rules.write_text(before)
        with admin.connect() as connection:
            connection.execute(text("select pg_reload_conf()"))
            connection.execute(text("drop role needs_password"))
            connection.execute(text("drop role reader"))
        admin.dispose()


def test_a_process_says_it_in_one_line_and_exits_with_1(tmp_path: Path) -> None:
    not_a_database(tmp_path, tmp_path)
    done = subprocess.run(
        [sys.executable, "-m", "app", "api"],
        env={**os.environ, "FRAMEFIT_DATA_DIR": str(tmp_path), "FRAMEFIT_PORT": "0"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert str(tmp_path / FILE) in line
    assert "restore it from a backup" in line
