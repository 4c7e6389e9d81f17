"""A data folder that is removed, replaced or read-only while the service runs: no job is taken that cannot be
stored, and health and metrics tell of it.
"""

import shutil
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest
from roots_rights import without_roots_rights
from starlette.testclient import TestClient
from waiting import wait_for

from app.api import background
from app.artifacts import data_folder
from app.artifacts.data_folder import DataFolder
from app.artifacts.local_folder import job_artifacts
from app.config import Settings

WAIT_SECONDS = 120.0


@pytest.fixture(params=["sqlite", "postgresql"])
def served(
    request: pytest.FixtureRequest,
    client_of: Callable[..., TestClient],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> TestClient:
    monkeypatch.setattr(background, "EVERY_SECONDS", 0.1)
    place = tmp_path / "data"
    place.mkdir()
    url = None if request.param == "sqlite" else request.getfixturevalue("empty_postgres")
    return client_of(Settings(data_dir=place, database_url=url, poll_seconds=0.02))


def post(client: TestClient, picture: bytes) -> tuple[int, str | None]:
    answer = client.post("/generate", data={"prompt": "p"}, files={"image": ("p.jpg", picture)})
    return answer.status_code, answer.json().get("code")


def usable(client: TestClient) -> bool:
    return "framefit_data_folder_usable 1.0" in client.get("/metrics").text


@pytest.mark.parametrize("replace", [False, True])
def test_no_job_is_taken_while_the_folder_is_away(
    replace: bool, served: TestClient, picture: bytes, tmp_path: Path
) -> None:
    assert post(served, picture) == (202, None)
    wait_for(lambda: usable(served), WAIT_SECONDS)
    (tmp_path / "data").rename(tmp_path / "away")
    if replace:
        (tmp_path / "data").mkdir()
    assert post(served, picture) == (503, "data_folder_unusable")
    said = "was replaced by another" if replace else "was removed"
    wait_for(lambda: said in served.get("/healthz").json()["storage"], WAIT_SECONDS)
    assert served.get("/healthz").status_code == 503
    assert said in served.get("/readyz").json()["storage"]
    assert not usable(served)
    assert [one.name for one in tmp_path.glob("data/*")] == [], "nothing is made in its place"
    shutil.rmtree(tmp_path / "data", ignore_errors=True)
    (tmp_path / "away").rename(tmp_path / "data")
    wait_for(lambda: served.get("/healthz").status_code == 200, WAIT_SECONDS)
    assert post(served, picture) == (202, None)
    assert usable(served)


def test_a_database_file_that_was_removed_takes_no_job(
    client_of: Callable[..., TestClient], settings: Settings, picture: bytes
) -> None:
    client = client_of(settings)
    assert post(client, picture) == (202, None)
    file = settings.data_dir / "framefit.sqlite3"
    file.unlink()
    assert post(client, picture) == (503, "data_folder_unusable")
    with closing(sqlite3.connect(file)) as other:
        other.execute("create table jobs (id text)")
    assert post(client, picture) == (503, "data_folder_unusable")


def test_a_worker_does_not_make_a_folder_that_was_removed(tmp_path: Path) -> None:
    settings = Settings(data_dir=tmp_path / "gone")
    with pytest.raises(FileNotFoundError):
        job_artifacts(settings.jobs_dir, "a-job").make()
    assert not settings.data_dir.exists()


def test_a_folder_on_a_full_disk_and_one_that_is_read_only_cannot_be_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = DataFolder(tmp_path)
    assert folder.fault() is None
    with monkeypatch.context() as larger:
        larger.setattr(data_folder, "FULL_BYTES", 2**62)  # more than any disk has
        assert "is on a full disk" in (folder.fault() or "")
    tmp_path.chmod(0o500)
    with without_roots_rights():
        assert folder.fault() == "cannot be written to: Permission denied"
    tmp_path.chmod(0o700)
    assert folder.fault() is None
