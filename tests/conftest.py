"""Fixtures shared by every test folder; this folder is on the path, so that tests import `nvml_stub`."""

from pathlib import Path

import nvml_stub
import pytest

from adaptive.device.host import freeze_garbage_collection


def pytest_collection_finish() -> None:
    freeze_garbage_collection()


@pytest.hookimpl(trylast=True)
def pytest_runtest_teardown(item: pytest.Item, nextitem: pytest.Item | None) -> None:
    if nextitem is None or item.path != nextitem.path:
        freeze_garbage_collection()  # libraries, too, that this file's tests have imported


@pytest.fixture(scope="session")
def nvml_library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Path of the stub NVIDIA driver, `libnvidia-ml.so.1`, freshly compiled."""
    return nvml_stub.build(tmp_path_factory.mktemp("nvml"))
