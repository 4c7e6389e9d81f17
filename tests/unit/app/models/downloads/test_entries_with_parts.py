"""Entries whose components come from files of their own: of their base, only the rest is downloaded."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from fake_hub import FakeHub, Repository, commit_of, running_hub, use_here
from hub_model import BYTES, FILES, LOADED, MIB, SOURCE, TRANSFORMER, VAE, entry_of, publish

from app.config import Settings
from app.models.downloads import known
from app.models.downloads.cached import Snapshot, list_files, repository_folder, stored_snapshot
from app.models.downloads.download import download, needs_download
from app.models.downloads.planning import DownloadFailed, Wanted, check_disk, plan_as_json, plan_download
from app.models.downloads.progress import DownloadProgress
from app.models.downloads.storage import storage_of
from app.models.downloads.transfer import Transfer
from app.models.entries import ModelEntry

OWN_BYTES = MIB // 2
REST = LOADED - {TRANSFORMER}
REST_BYTES = BYTES - len(FILES[TRANSFORMER])


@pytest.fixture(autouse=True)
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    with running_hub() as hub:
        publish(hub)
        use_here(hub, tmp_path / "hf" / "hub", monkeypatch)
        for name, value in hub.environ(tmp_path / "hf").items():
            monkeypatch.setenv(name, value)
        yield hub


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    (tmp_path / "data").mkdir()
    return Settings(data_dir=tmp_path / "data")


@pytest.fixture
def base(settings: Settings) -> ModelEntry:
    return entry_of(settings, name="base")


@pytest.fixture
def mine(settings: Settings, tmp_path: Path) -> ModelEntry:
    own = tmp_path / "own.safetensors"
    own.write_bytes(bytes(OWN_BYTES))
    return entry_of(settings, transformer=str(own))


def downloaded(entry: ModelEntry) -> Snapshot:
    transfer = Transfer(plan_download(Wanted.by(entry)), pause_seconds=0.01)
    transfer.start()
    while not transfer.done:
        continue
    transfer.finish()
    return stored(entry)


def stored(entry: ModelEntry) -> Snapshot:
    found = stored_snapshot(entry)
    assert found is not None
    return found


def asked(entry: ModelEntry, settings: Settings) -> None:
    plan = plan_as_json(plan_download(Wanted.by(entry)))
    known.record_size(settings, entry, plan["total_bytes"], plan["blobs"])


def test_the_weights_of_a_part_are_neither_fetched_nor_missed(
    hub: FakeHub, settings: Settings, mine: ModelEntry
) -> None:
    seen: list[DownloadProgress] = []
    found = download(mine, settings, seen.append, lambda: False)
    assert {each.total_bytes for each in seen} == {REST_BYTES}
    assert set(found.files) == REST
    assert "transformer/config.json" in found.files
    assert not [each for each in hub.file_requests() if TRANSFORMER in each]
    assert not needs_download(mine, settings)
    told = storage_of(mine, settings)
    assert (told.on_disk, told.size_bytes, told.download_bytes) == (True, REST_BYTES + OWN_BYTES, 0)


def test_the_disk_needs_no_room_for_the_weights_of_a_part(monkeypatch: pytest.MonkeyPatch) -> None:
    free = 64 * MIB + REST_BYTES
    monkeypatch.setattr(shutil, "disk_usage", lambda _folder: Usage(100 * free, 99 * free, free))
    check_disk(plan_download(Wanted(SOURCE, parts=("transformer",))))
    with pytest.raises(DownloadFailed, match="free space"):
        check_disk(plan_download(Wanted(SOURCE)))


class Usage(NamedTuple):
    total: int
    used: int
    free: int


def test_entries_of_one_repository_keep_their_own_lists_and_sizes(
    hub: FakeHub, settings: Settings, mine: ModelEntry, base: ModelEntry
) -> None:
    for entry in (mine, base):
        asked(entry, settings)
    assert (known.known_size(settings, mine), known.known_size(settings, base)) == (REST_BYTES, BYTES)
    downloaded(mine)
    assert needs_download(base, settings)
    # What another entry has brought is not brought again; what only another entry has is no part of it.
    assert storage_of(base, settings).download_bytes == len(FILES[TRANSFORMER])
    downloaded(base)
    assert sum(VAE in each for each in hub.file_requests()) == 2  # the link, and where it leads
    assert set(stored(mine).files) == REST
    assert set(stored(base).files) == LOADED


def test_a_base_that_is_whole_serves_an_entry_with_parts(
    hub: FakeHub, settings: Settings, mine: ModelEntry, base: ModelEntry
) -> None:
    downloaded(base)
    requests = len(hub.requests)
    assert not needs_download(mine, settings)
    assert set(stored(mine).files) == REST
    assert len(hub.requests) == requests
    vae_too = mine.model_copy(update={"vae": "/somewhere/vae.safetensors"})
    assert set(stored(vae_too).files) == REST - {VAE}


def test_a_folder_without_the_weights_or_the_configuration_is_judged_by_the_entry(
    settings: Settings, mine: ModelEntry, base: ModelEntry
) -> None:
    repository = repository_folder(SOURCE)
    commit = commit_of(FILES)
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(commit)
    for name in REST:  # as another program has left them
        path = repository / "snapshots" / commit / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(FILES[name])
    assert not needs_download(mine, settings)
    assert needs_download(base, settings)
    (repository / "snapshots" / commit / "transformer" / "config.json").unlink()
    assert needs_download(mine, settings)


@pytest.mark.parametrize("variant", [None, "fp16"])
def test_shards_and_variants_of_a_part_are_left_at_the_hub(
    hub: FakeHub, settings: Settings, mine: ModelEntry, variant: str | None
) -> None:
    dotted = "" if variant is None else f".{variant}"
    stem = "transformer/diffusion_pytorch_model"
    shards = {
        f"{stem}.safetensors.index{dotted}.json": b'{"weight_map": {}}',
        f"{stem}{dotted}-00001-of-00002.safetensors": b"1" * MIB,
        f"{stem}{dotted}-00002-of-00002.safetensors": b"2" * MIB,
    }
    files = {**{name: FILES[name] for name in REST}, **shards}
    hub.repositories[SOURCE] = Repository(files, commit_of(files))
    entry = mine.model_copy(update={"variant": variant})
    assert set(downloaded(entry).files) == REST
    assert not needs_download(entry, settings)


def test_a_list_of_files_belongs_to_a_variant_and_to_parts(tmp_path: Path) -> None:
    keys: list[tuple[Any, ...]] = [
        (None, ()),
        ("fp16", ()),
        (None, ("vae",)),
        ("fp16", ("vae",)),
        (None, ("transformer", "vae")),
    ]
    for number, (variant, parts) in enumerate(keys):
        list_files(tmp_path, "c", variant, [str(number)], parts)
    assert len(list((tmp_path / ".framefit").iterdir())) == len(keys)
