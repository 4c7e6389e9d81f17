"""Configurations of a model that is at the hub: what its download has brought is used, and nobody waits."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from fake_hub import FakeHub, running_hub, use_here
from hub_model import FILES, SOURCE, entry_of, publish

from app.config import Settings
from app.models.components import ModelUnavailable, components_of


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    with running_hub() as hub:
        publish(hub)
        use_here(hub, tmp_path / "hub", monkeypatch)
        yield hub


def test_a_hub_that_fails_is_asked_once_and_the_reason_told(hub: FakeHub, tmp_path: Path) -> None:
    settings = Settings(data_dir=tmp_path)
    hub.status, hub.failures = 503, -1
    with pytest.raises(ModelUnavailable, match="answers for somebody/tiny with status 503") as failed:
        components_of(entry_of(settings), settings)
    assert failed.value.transient
    assert len(hub.requests) == 1


def test_a_hub_that_nobody_runs_is_no_reason_to_wait(
    hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    settings = Settings(data_dir=tmp_path)
    hub.url = "http://127.0.0.1:1"
    use_here(hub, tmp_path / "hub", monkeypatch)
    with pytest.raises(ModelUnavailable, match=f"{SOURCE} is not on this machine and the") as failed:
        components_of(entry_of(settings), settings)
    assert failed.value.transient
    assert "Retrying" not in caplog.text


def test_configurations_are_asked_for_once(hub: FakeHub, tmp_path: Path) -> None:
    settings = Settings(data_dir=tmp_path)
    assert set(components_of(entry_of(settings), settings)) == {"vae", "transformer"}
    requests = len(hub.requests)
    hub.repositories.clear()
    found = components_of(entry_of(settings), settings)
    assert found["vae"].config == json.loads(FILES["vae/config.json"])
    assert len(hub.requests) == requests
