"""Fixtures shared by every test folder; this folder is on the path, so that tests import `nvml_stub`."""

import gc
from pathlib import Path

import nvml_stub
import pytest


def pytest_collection_finish() -> None:
    _overlook_libraries()


@pytest.hookimpl(trylast=True)
def pytest_runtest_teardown(item: pytest.Item, nextitem: pytest.Item | None) -> None:
    if nextitem is None or item.path != nextitem.path:
        _overlook_libraries()  # those, too, that this file's tests have imported


def _overlook_libraries() -> None:
    """Every decode collects garbage, as in the service: it need not look at all of torch for that."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def nvml_library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Path of the stub NVIDIA driver, `libnvidia-ml.so.1`, freshly compiled."""
    return nvml_stub.build(tmp_path_factory.mktemp("nvml"))
