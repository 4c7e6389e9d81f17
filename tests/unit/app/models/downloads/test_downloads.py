"""Downloads in their own process, from a hub on this machine. Jobs cancel them in `test_download_stage`."""

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from fake_hub import FakeHub, running_hub
from hub_model import BYTES, FILES, LOADED, MIB, SOURCE, entry_of, publish

from app.config import Settings
from app.models.downloads import known
from app.models.downloads.cached import Snapshot, stored_snapshot
from app.models.downloads.download import ask_size, download, needs_download
from app.models.downloads.planning import DownloadFailed
from app.models.downloads.progress import DownloadProgress
from app.models.entries import ModelEntry


@pytest.fixture(autouse=True)
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    with running_hub() as hub:
        publish(hub)
        for name, value in hub.environ(tmp_path / "hf").items():
            monkeypatch.setenv(name, value)
        monkeypatch.delenv("HF_TOKEN", raising=False)
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hf" / "hub"))
        yield hub


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    (tmp_path / "data").mkdir()
    return Settings(data_dir=tmp_path / "data")


@pytest.fixture
def entry(settings: Settings) -> ModelEntry:
    return entry_of(settings)


def never() -> bool:
    return False


def downloaded(entry: ModelEntry, settings: Settings, seen: list[DownloadProgress] | None = None) -> Snapshot:
    seen = [] if seen is None else seen
    return download(entry, settings, seen.append, never, pause_seconds=0.01)


def test_only_what_the_pipeline_loads_comes_and_nothing_comes_twice(
    settings: Settings, entry: ModelEntry
) -> None:
    assert needs_download(entry, settings)
    started: list[bool] = []
    told = ask_size(entry, settings, never, lambda: started.append(known.known_size(settings, entry) is None))
    assert told == (BYTES, BYTES - len(FILES["model_index.json"]))
    assert started == [True]
    assert known.known_size(settings, entry) == BYTES
    seen: list[DownloadProgress] = []
    found = downloaded(entry, settings, seen)
    there = {path.relative_to(found.folder).as_posix() for path in found.folder.rglob("*") if path.is_file()}
    assert there == LOADED == set(found.files)
    assert all((found.folder / name).read_bytes() == FILES[name] for name in LOADED)
    assert found.total_bytes == seen[-1].done_bytes == seen[-1].total_bytes == BYTES
    assert not needs_download(entry, settings)


def test_a_gated_repository_says_where_to_accept_and_what_to_set(
    hub: FakeHub, settings: Settings, entry: ModelEntry, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.repositories[SOURCE].gated = True
    told = f"{SOURCE} is gated: accept its licence at {hub.url}/{SOURCE} and set HF_TOKEN"
    with pytest.raises(DownloadFailed, match=told) as failed:
        downloaded(entry, settings)
    assert not failed.value.transient
    assert told in (known.known_refusal(settings, entry) or "")
    monkeypatch.setenv("HF_TOKEN", "a-good-token")
    assert known.known_refusal(settings, entry) is None  # it was for another token
    assert download(entry, settings, lambda _: None, never).total_bytes == BYTES
    assert hub.leaked_tokens == 0


def test_two_downloads_of_one_model_fetch_it_once(
    hub: FakeHub, settings: Settings, entry: ModelEntry
) -> None:
    hub.bytes_per_second = 8 * MIB
    both = [threading.Thread(target=downloaded, args=(entry, settings)) for _ in range(2)]
    for each in both:
        each.start()
    for each in both:
        each.join()
    assert stored_snapshot(entry)
    assert hub.sent_bytes < BYTES + MIB
