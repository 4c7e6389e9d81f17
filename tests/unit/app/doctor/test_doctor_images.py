"""Images that waiting jobs have lost: an operator should know before the jobs fail."""

import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

from app.config import Settings
from app.doctor.findings import CheckResult
from app.doctor.images import images
from app.jobs import JobSpec
from app.store import open_store


def test_images_that_waiting_jobs_have_lost_are_found(
    settings: Settings, make_spec: Callable[..., JobSpec], tmp_path: Path
) -> None:
    assert list(images(settings)) == [], "no database yet"
    with closing(open_store(settings)) as store:
        store.migrate()
        canceled, *_ = [store.add(make_spec(), b"image") for _ in range(4)]
        store.cancel(canceled.id)
        assert list(images(settings)) == []
        for path in (tmp_path / "pictures").rglob("*"):
            if path.is_file():
                path.unlink()
        (found,) = images(settings)
    assert found.standing is CheckResult.WRONG
    assert "3 of the 3 images" in found.detail


def test_a_database_that_is_older_or_elsewhere_is_left_to_other_checks(
    settings: Settings, empty_postgres: str
) -> None:
    with closing(sqlite3.connect(settings.data_dir / "framefit.sqlite3")) as connection:
        connection.execute("create table jobs (id text)")
    assert list(images(settings)) == []
    for url in (empty_postgres, "no address", "sqlite://"):
        assert list(images(settings.model_copy(update={"database_url": url}))) == []
