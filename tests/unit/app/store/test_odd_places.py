"""Databases with odd names: any folder may be the data folder, any text a PostgreSQL password."""

import os
import re
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from sqlalchemy import URL, create_engine, make_url, text

from app.config import ConfigError, Settings
from app.doctor import place
from app.store import JobStore, StoreError, open_store
from app.store.upkeep.health import HEAD_REVISION, inspect_database

FILE = "framefit.sqlite3"
ODD_FOLDERS = [
    "d?x=1",
    "d%41t",
    "100%",
    "two words ",
    "d#x",
    "a&b=c;d",
    "a+b",
    "user:secret@host",
    "~",
    "$HOME",
    "-lead",
    "--data-dir=x",
    ":memory:",
    "file:d?mode=ro",
    "line\nbreak",
    "quo\"te's\\",
    "Ünïcode-日本語-🎞",
    os.fsdecode(b"not-utf8-\xff"),
    "n" * 200,
    "inner/../folder",
]


@pytest.mark.parametrize(
    ("name", "relative"),
    [
        *((name, False) for name in ODD_FOLDERS),
        *((name, True) for name in ("d?x=1", "d%41t", "~", "-lead", ":memory:", "file:d?mode=ro")),
    ],
)
def test_the_database_is_in_the_data_folder_whatever_its_name_is(
    name: str, relative: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "inner").mkdir()
    folder = Path(name) if relative else tmp_path / name
    settings = Settings(data_dir=folder)
    with closing(open_store(settings)) as store:
        monkeypatch.chdir("/")  # a relative folder is the one of the start
        with pytest.raises(StoreError):
            store.counts()  # it has no tables yet, so the file exists once SQLite has looked for them
    found = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert {path.resolve() for path in found if path.name == FILE} == {(tmp_path / name / FILE).resolve()}
    assert all(path.name.startswith(FILE) for path in found), found


def test_a_folder_that_looks_like_a_url_keeps_its_jobs_and_the_doctor_finds_them(tmp_path: Path) -> None:
    settings = Settings(data_dir=tmp_path / "d?x=1 %41#")
    with closing(open_store(settings)) as store:
        store.migrate()
    assert (settings.data_dir / FILE).is_file()
    assert inspect_database(settings.resolved_database_url) == (HEAD_REVISION, {})
    assert place.database(settings).detail.startswith(f"schema {HEAD_REVISION}")


def test_a_path_longer_than_sqlite_opens_is_refused_with_both_numbers(tmp_path: Path) -> None:
    folder = tmp_path
    while len(os.fsencode(folder / FILE)) <= 512:
        folder /= "n" * 60
    long = len(os.fsencode(folder / FILE))
    with pytest.raises(ConfigError, match=f"{long} bytes.*at most 504.*FRAMEFIT_DATA_DIR"):
        open_store(Settings(data_dir=folder))
    most = tmp_path / ("m" * (504 - len(os.fsencode(tmp_path / FILE)) - 1))[:200]
    while (room := 504 - len(os.fsencode(most / FILE)) - 1) > 0:
        most /= "m" * min(room, 200)
    assert len(os.fsencode(most / FILE)) in (503, 504)
    with closing(open_store(Settings(data_dir=most))) as store:
        store.migrate()
    assert (most / FILE).is_file()


@pytest.mark.parametrize("url", ["sqlite://", "sqlite:///:memory:", "sqlite:///"])
def test_a_database_in_memory_is_refused(url: str) -> None:
    with pytest.raises(ConfigError, match="needs a database file"):
        open_store(Settings(database_url=url))


ODD_PASSWORDS = [
    "a@b",
    "a/b",
    "100%",
    "%41",
    "a:b",
    "a?b#c",
    "a b+c",
    "a&b=c",
    "pässwörd",
    "'\"\\",
    "@:/%?#[]",
]


@pytest.fixture
def strict_role(empty_postgres: str) -> Iterator[str]:
    """A role of the server that must give its password; its name."""
    role = "odd_passwords"
    admin = create_engine(empty_postgres, isolation_level="AUTOCOMMIT")
    with admin.connect() as connection:
        rules = Path(str(connection.execute(text("show hba_file")).scalar()))
        before = rules.read_text()
        rules.write_text(f"local all {role} scram-sha-256\n{before}")
        connection.execute(text(f"create role {role} login superuser"))
        connection.execute(text("select pg_reload_conf()"))
    try:
        yield role
    finally:
        rules.write_text(before)
        with admin.connect() as connection:
            connection.execute(text("select pg_reload_conf()"))
            connection.execute(text(f"drop role {role}"))
        admin.dispose()


def test_any_password_opens_postgresql_in_the_url_or_beside_it(strict_role: str, empty_postgres: str) -> None:
    admin = create_engine(empty_postgres, isolation_level="AUTOCOMMIT")
    place = make_url(empty_postgres).set(username=strict_role)
    for password in ODD_PASSWORDS:
        with admin.connect() as connection:
            quoted = password.replace("'", "''")
            connection.exec_driver_sql(f"alter role {strict_role} password '{quoted}'".replace("%", "%%"))
        within = place.set(password=password).render_as_string(hide_password=False)
        beside = place.render_as_string(hide_password=False)
        url = Settings(database_url=within).resolved_database_url
        assert inspect_database(url) == (None, {}), password
        assert password not in repr(url)
        settings = Settings(database_url=beside, database_password=password)
        with closing(open_store(settings)) as store, pytest.raises(StoreError, match="jobs"):
            store.counts()  # it answered: there is no such table
    wrong = Settings(database_url=beside, database_password="another")
    with pytest.raises(StoreError, match="password"):
        inspect_database(wrong.resolved_database_url)
    admin.dispose()


def test_a_password_without_a_database_url_is_refused() -> None:
    with pytest.raises(ValueError, match=r"FRAMEFIT_DATABASE_PASSWORD.*FRAMEFIT_DATABASE_URL"):
        Settings(database_password="secret")


@pytest.mark.parametrize(
    "url", ["postgresql://me:p@ss:word@host/db", "postgresql://me:a/b@host:port/db", "nonsense"]
)
def test_a_url_that_cannot_be_read_says_how_to_write_it_and_shows_no_password(url: str) -> None:
    with pytest.raises(ConfigError, match=r"FRAMEFIT_DATABASE_URL.*FRAMEFIT_DATABASE_PASSWORD") as refusal:
        open_store(Settings(database_url=url))
    assert not re.search("ss:word|a/b", str(refusal.value))


def test_a_store_takes_a_url_as_text_too(tmp_path: Path) -> None:
    url = URL.create("sqlite", database=str(tmp_path / "plain.sqlite3"))
    for given in (url, url.render_as_string()):
        with closing(JobStore(given)) as store:
            store.migrate()
