"""A GPU's worker gets an allocator that maps pages, unless the operator has chosen another one."""

import pytest

from app.service.gpus.allocator import VARIABLES
from app.service.gpus.devices import CPU, DeviceChoice
from app.service.processes import worker_spec

CARD = DeviceChoice("GPU-1", "cuda:0", "cuda:0", {"CUDA_VISIBLE_DEVICES": "GPU-1"})


@pytest.fixture(autouse=True)
def _unset(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)


def test_a_gpus_worker_uses_expandable_segments(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.platform", "linux")
    environ = worker_spec(CARD, "i").environ
    assert environ == {"PYTORCH_ALLOC_CONF": "expandable_segments:True", "CUDA_VISIBLE_DEVICES": "GPU-1"}
    assert worker_spec(CPU, "i").environ == {}


@pytest.mark.parametrize("name", VARIABLES)
def test_what_the_operator_set_stays(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, "max_split_size_mb:128")
    assert worker_spec(CARD, "i").environ == CARD.environ


def test_other_platforms_have_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.platform", "win32")
    assert worker_spec(CARD, "i").environ == CARD.environ
