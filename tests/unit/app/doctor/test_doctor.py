"""`framefit doctor` finds what is in the way of jobs, says what to do, and changes nothing."""

import json
import os
import resource
import socket
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import nvml_stub
import pytest
from nvml_stub import StubGpu

from app.config import Settings
from app.doctor import CheckResult, machine, place
from app.doctor.findings import Finding
from app.service.data_folder import locked_data_folder
from app.store import open_store
from app.store.upkeep import health

OLD_SCHEMA = Path(__file__).parents[1] / "store" / "schemas" / "0001.sqlite.sql"


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(data_dir=tmp_path)


def database_path(settings: Settings) -> Path:
    return settings.data_dir / "framefit.sqlite3"


def test_a_folder_that_cannot_be_made_is_wrong(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    found = place.disk(Settings(data_dir=tmp_path / "file" / "data"))
    assert found.standing is CheckResult.WRONG
    assert "FRAMEFIT_DATA_DIR" in found.advice


def test_a_full_disk_is_wrong(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    assert place.disk(settings).standing is CheckResult.OK
    monkeypatch.setattr(place, "LOW_DISK_BYTES", 2**60)
    assert place.disk(settings).standing is CheckResult.WRONG


def test_a_database_that_is_not_there_yet_is_not_made(settings: Settings) -> None:
    found = place.database(settings)
    assert (found.standing, "first start" in found.detail) == (CheckResult.OK, True)
    assert not database_path(settings).exists()


def test_an_old_schema_is_reported_and_not_changed(settings: Settings) -> None:
    with closing(sqlite3.connect(database_path(settings))) as connection:
        connection.executescript(OLD_SCHEMA.read_text())
    found = place.database(settings)
    assert (found.standing, "schema 0001, upgraded to" in found.detail) == (CheckResult.OK, True)
    assert place.database(settings).detail == found.detail


def test_a_schema_of_a_later_version_is_wrong(settings: Settings) -> None:
    with closing(open_store(settings)) as store:
        store.migrate()
    with closing(sqlite3.connect(database_path(settings))) as connection, connection:
        connection.execute("update alembic_version set version_num = '9999'")
    found = place.database(settings)
    assert (found.standing, "newer Framefit" in found.detail) == (CheckResult.WRONG, True)


def test_a_database_that_somebody_holds_is_wrong(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(health, "LOCK_SECONDS", 0.1)
    with closing(open_store(settings)) as store:
        store.migrate()
    with closing(sqlite3.connect(database_path(settings), isolation_level=None)) as holder:
        holder.execute("begin immediate")
        found = place.database(settings)
    assert (found.standing, "locked" in found.detail) == (CheckResult.WRONG, True)
    assert place.database(settings).standing is CheckResult.OK


def test_a_postgresql_server_is_looked_at_in_the_same_way(empty_postgres: str, tmp_path: Path) -> None:
    settings = Settings(data_dir=tmp_path, database_url=empty_postgres)
    assert "first start" in place.database(settings).detail
    with closing(open_store(settings)) as store:
        store.migrate()
    assert place.database(settings).standing is CheckResult.OK


@pytest.mark.parametrize(
    "url", ["postgresql+psycopg://nobody@127.0.0.1:1/nothing", "no address", "sqlite://"]
)
def test_an_address_with_no_database_behind_it_is_wrong(tmp_path: Path, url: str) -> None:
    found = place.database(Settings(data_dir=tmp_path, database_url=url))
    assert (found.standing, "FRAMEFIT_DATABASE_URL" in found.advice) == (CheckResult.WRONG, True)


def test_what_is_no_database_is_wrong(settings: Settings) -> None:
    database_path(settings).write_text("a letter, not a database" * 100)
    assert place.database(settings).standing is CheckResult.WRONG


def test_a_port_is_free_taken_or_ones_own(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        settings = Settings(data_dir=tmp_path, port=taken.getsockname()[1])
        found = place.port(settings)
        assert (found.standing, "FRAMEFIT_PORT" in found.advice) == (CheckResult.WRONG, True)
        with locked_data_folder(tmp_path):
            (tmp_path / "service.json").write_text(json.dumps({"url": "http://here", "pid": 1}))
            found = place.port(settings)
        assert (found.standing, "http://here" in found.detail) == (CheckResult.OK, True)
    assert place.port(settings).standing is CheckResult.OK


def test_few_open_files_and_little_memory_are_worth_a_note(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    monkeypatch.setattr(place, "LOW_MEMORY_BYTES", 2**60)
    resource.setrlimit(resource.RLIMIT_NOFILE, (1024, hard))
    try:
        found = {one.subject: one for one in place.limits(settings)}
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert {one.standing for one in found.values()} == {CheckResult.NOTE}
    assert "ulimit -n" in found["files"].advice


@pytest.mark.parametrize(
    ("built", "driver", "trouble"),
    [
        (None, (13, 0), "cannot be used"),
        ("13.0", (12, 8), "CUDA 12.8 at most"),
        ("12.9", (12, 4), None),
        ("12.4", (13, 0), None),
        ("13.0", None, None),
    ],
)
def test_a_build_of_torch_is_held_against_the_driver(
    built: str | None, driver: tuple[int, int] | None, trouble: str | None
) -> None:
    found = machine._unsuited(built, driver)
    assert (found is None) == (trouble is None)
    assert found is None or (trouble or "") in found[0]


def test_cards_that_are_lost_misnamed_or_unusable_are_reported(nvml_library: Path, tmp_path: Path) -> None:
    described = tmp_path / "machine"
    lost = StubGpu("GPU-00000000-0000-0000-0000-000000000002", lost=True)
    nvml_stub.write_machine(described, [StubGpu(), lost])
    code = (
        "import json; from app.config import Settings; from app.doctor import machine;"
        "found = [*machine.devices(Settings(devices='cuda:7')), machine.torch_build()];"
        "print(json.dumps([one.as_json() for one in found]))"
    )
    environ = {**os.environ, **nvml_stub.environment(nvml_library, described)}
    run = subprocess.run(
        [sys.executable, "-c", code], env=environ, capture_output=True, text=True, check=True
    )
    card, broken, devices, torch = json.loads(run.stdout)
    assert (card["standing"], "580.0-stub" in card["detail"]) == ("ok", True)
    assert (broken["standing"], "nvidia-smi" in broken["advice"]) == ("wrong", True)
    assert (devices["standing"], "cuda:7" in devices["detail"]) == ("wrong", True)
    assert torch["standing"] == "wrong", "no build of torch can use a card that is a stub"


def test_a_model_that_may_be_quantized_needs_the_library_for_that(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "models.toml"
    path.write_text('[models.ltx-video]\nquantize = "int8"\n')
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    settings = Settings(data_dir=tmp_path, models_file=path)

    def told() -> list[Finding]:
        return [one for one in machine.models(settings) if "torchao" in one.detail]

    assert told() == []
    monkeypatch.setattr(machine.importlib.util, "find_spec", lambda _name: None)
    (found,) = told()
    assert found.standing is CheckResult.WRONG
    assert "ltx-video" in found.detail
    assert "framefit[quantize]" in found.advice
