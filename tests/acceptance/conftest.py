"""Services for acceptance tests: real processes, on free ports, each on a folder of its own."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from running_service import RunningService, StartService, service_starter

from app.pipelines import tiny


@pytest.fixture(scope="session")
def built_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built-in model, made once for all data folders."""
    return tiny.build(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture
def start_service(built_model: Path, tmp_path: Path) -> Iterator[StartService]:
    """Starts services on this test's data folder; every one is stopped at the end."""
    yield from service_starter(built_model, tmp_path / "data")


@pytest.fixture(scope="module")
def shared_service(built_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningService]:
    """One service for all tests of a file; what one test leaves behind, the next must live with.

    It does not calibrate: on a busy machine, short decodes may say anything of what is fastest.
    """
    for start in service_starter(built_model, tmp_path_factory.mktemp("shared") / "data"):
        yield start(FRAMEFIT_CALIBRATE_SECONDS="0")
