"""Downloads in their own process: told, canceled, killed, refused; from a hub on this machine."""

import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from fake_hub import FakeHub, running_hub
from hub_model import BYTES, FILES, LOADED, MIB, SOURCE, entry_of, publish
from waiting import wait_for

from app.config import Settings
from app.models.downloads import known
from app.models.downloads.cached import Snapshot, stored_snapshot
from app.models.downloads.download import DownloadCanceled, ask_size, download, needs_download
from app.models.downloads.planning import DownloadFailed
from app.models.downloads.progress import DownloadProgress
from app.models.entries import ModelEntry

LONG_SECONDS = 60.0


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
    assert ask_size(entry, settings, never) == (BYTES, BYTES - len(FILES["model_index.json"]))
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
    assert downloaded(entry, settings).total_bytes == BYTES
    assert hub.leaked_tokens == 0


def test_a_canceled_download_stops_in_mid_file_and_the_next_goes_on_there(
    hub: FakeHub, settings: Settings, entry: ModelEntry
) -> None:
    canceled = threading.Event()

    def stop_at(progress: DownloadProgress) -> None:
        if progress.done_bytes > 2 * MIB:
            hub.halted.set()  # it would wait for ever
            canceled.set()

    hub.bytes_per_second = 8 * MIB
    with pytest.raises(DownloadCanceled):
        download(entry, settings, stop_at, canceled.is_set)
    assert not [each for each in psutil.Process().children() if "app.models.downloads" in each.cmdline()]
    assert stored_snapshot(entry) is None
    hub.halted.clear()
    hub.bytes_per_second = None
    sent = hub.sent_bytes
    assert downloaded(entry, settings).total_bytes == BYTES
    assert hub.sent_bytes - sent < BYTES - MIB


def test_a_process_that_is_killed_leaves_no_download_behind_and_the_next_goes_on(
    hub: FakeHub, settings: Settings, entry: ModelEntry
) -> None:
    hub.bytes_per_second = 4 * MIB
    code = (
        "import sys\n"
        "from pathlib import Path\n"
        "from app.config import Settings\n"
        "from app.models.downloads.download import download\n"
        "from app.models.entries import ModelEntry\n"
        "entry = ModelEntry.model_validate_json(sys.argv[1])\n"
        "download(entry, Settings(data_dir=Path(sys.argv[2])), lambda _: None, lambda: False)\n"
    )
    command = [sys.executable, "-c", code, entry.model_dump_json(), str(settings.data_dir)]
    process = subprocess.Popen(command)
    wait_for(lambda: hub.sent_bytes > 2 * MIB, LONG_SECONDS)
    children = psutil.Process(process.pid).children()
    assert children
    process.send_signal(signal.SIGKILL)
    process.wait()
    psutil.wait_procs(children, LONG_SECONDS)
    assert not any(child.is_running() for child in children)
    hub.bytes_per_second, sent = None, hub.sent_bytes
    assert downloaded(entry, settings).total_bytes == BYTES
    assert hub.sent_bytes - sent < BYTES


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
