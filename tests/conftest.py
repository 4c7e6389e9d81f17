"""Fixtures shared by every test folder; this folder is on the path, so that tests import `nvml_stub`."""

from pathlib import Path

import nvml_stub
import pytest


@pytest.fixture(scope="session")
def nvml_library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Path of the stub NVIDIA driver, `libnvidia-ml.so.1`, freshly compiled."""
    return nvml_stub.build(tmp_path_factory.mktemp("nvml"))
