"""How files come from a hub on this machine: whole, whatever happens to connections, disk and bytes."""

import hashlib
import json
import os
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from fake_hub import FakeHub, Repository, commit_of, running_hub, use_here
from hub_model import BYTES, FILES, INDEX, LOADED, MIB, SOURCE, TRANSFORMER, VAE, entry_of, publish

from app.config import Settings
from app.models.components import components_of
from app.models.downloads import __main__ as process
from app.models.downloads import cached
from app.models.downloads.cached import repository_folder, stored_snapshot
from app.models.downloads.planning import (
    DownloadFailed,
    DownloadPlan,
    Wanted,
    check_disk,
    failure_of,
    plan_download,
)
from app.models.downloads.transfer import BrokenFile, Transfer

WANTED = Wanted(SOURCE)


@pytest.fixture(autouse=True)
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    with running_hub() as hub:
        publish(hub)
        use_here(hub, tmp_path / "hub", monkeypatch)
        yield hub


def transferred(plan: DownloadPlan | None = None) -> Path:
    transfer = Transfer(plan or plan_download(WANTED), pause_seconds=0.001)
    transfer.start()
    while not transfer.done:
        time.sleep(0.01)
    return transfer.finish()


def is_whole(folder: Path) -> bool:
    there = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    return there == LOADED and all((folder / name).read_bytes() == FILES[name] for name in LOADED)


def test_a_connection_that_breaks_off_goes_on_at_its_last_byte(hub: FakeHub) -> None:
    hub.break_after, hub.breaks = MIB, 5
    assert is_whole(transferred())
    assert hub.breaks == 0
    assert hub.sent_bytes < BYTES + MIB
    assert sum("bytes=" in request for request in hub.requests) >= 5


def test_damaged_bytes_and_a_hub_that_ignores_ranges_still_give_the_right_files(hub: FakeHub) -> None:
    blobs = repository_folder(SOURCE) / "blobs"
    blobs.mkdir(parents=True)
    blob = hashlib.sha256(FILES[VAE]).hexdigest()
    (blobs / f"{blob}.incomplete").write_bytes(b"x" * MIB)  # not what the hub has
    hub.break_after, hub.breaks, hub.ignores_ranges = 4 * MIB, 1, True
    assert is_whole(transferred())


def test_a_file_that_always_comes_damaged_is_refused(hub: FakeHub) -> None:
    plan = plan_download(WANTED)
    hub.repositories[SOURCE].files[VAE] = b"x" * len(FILES[VAE])
    with pytest.raises(BrokenFile, match="has come damaged"):
        transferred(plan)


def test_a_large_file_outside_large_file_storage_is_checked_by_its_content(
    hub: FakeHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fake_hub.LFS_BYTES", 4 * MIB)
    plan = plan_download(WANTED)
    assert next(file.sha256 for file in plan.files if file.path == VAE) is None
    hub.repositories[SOURCE].files[VAE] = b"x" * len(FILES[VAE])
    with pytest.raises(BrokenFile, match="has come damaged: its git id"):
        transferred(plan)
    hub.repositories[SOURCE].files[VAE] = FILES[VAE]
    assert is_whole(transferred(plan))


def test_a_transfer_that_failed_writes_no_more(hub: FakeHub) -> None:
    plan = plan_download(WANTED)
    hub.repositories[SOURCE].files[VAE] = b"x" * len(FILES[VAE])
    hub.bytes_per_second = MIB  # so that the other files are still coming
    before = set(threading.enumerate())
    with pytest.raises(BrokenFile):
        transferred(plan)
    started = set(threading.enumerate()) - before
    assert not [each for each in started if each.name.startswith("ThreadPoolExecutor")]


def test_a_content_under_two_paths_comes_once_and_counts_once(hub: FakeHub) -> None:
    both = {name: ["transformers", "T5TokenizerFast"] for name in ("tokenizer", "tokenizer_2")}
    same = os.urandom(3 * MIB)
    files = {f"{name}/tokenizer.json": same for name in both} | FILES
    files["model_index.json"] = json.dumps(INDEX | both).encode()
    hub.repositories[SOURCE] = Repository(files, commit_of(files))
    hub.bytes_per_second = 8 * MIB  # so that the paths would come at the same time
    plan = plan_download(WANTED)
    plan_bytes = BYTES + len(files["model_index.json"]) - len(FILES["model_index.json"]) + len(same)
    assert plan.total_bytes == plan_bytes
    folder = transferred(plan)
    assert all((folder / name / "tokenizer.json").read_bytes() == same for name in both)
    assert hub.sent_bytes < plan_bytes + MIB
    assert plan.missing_bytes == 0
    stored = stored_snapshot(entry_of(Settings()))
    assert stored is not None
    assert stored.total_bytes == plan_bytes


def test_looking_at_a_models_configuration_leaves_the_stored_revision_in_use(
    hub: FakeHub, tmp_path: Path
) -> None:
    settings = Settings(data_dir=tmp_path)
    whole = entry_of(settings)
    other = whole.model_copy(update={"variant": "fp16"})  # of the same repository, and not on this machine
    transferred()
    found = stored_snapshot(whole)
    assert found is not None
    files = FILES | {"README.md": b"# A model, described better", "vae/config.json": b'{"new": true}'}
    hub.repositories[SOURCE] = Repository(files, commit_of(files))
    for each in (whole, other):
        asked = len(hub.file_requests())
        assert components_of(each, settings)["vae"].config == {}
        assert len(hub.file_requests()) == asked
        assert stored_snapshot(whole) == found


def test_a_file_that_goes_while_a_folder_is_counted_counts_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stays, goes = tmp_path / "blob", tmp_path / "blob.incomplete"
    stays.write_bytes(b"x" * 10)
    monkeypatch.setattr(cached, "_files", lambda _: iter((goes, stays)))  # listed, then completed
    assert cached._tree_bytes(tmp_path) == 10


def test_a_connection_that_always_breaks_off_is_given_up_and_goes_on_later(hub: FakeHub) -> None:
    hub.break_after, hub.breaks = 0, -1
    with pytest.raises(Exception, match="without sending complete") as broken:
        transferred()
    failed = failure_of(broken.value, WANTED)
    assert "breaks off again and again" in str(failed)
    assert failed.transient
    hub.breaks = 0
    assert is_whole(transferred())


def test_files_that_are_left_to_the_hubs_client_are_told_as_they_come(
    hub: FakeHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[dict[str, int]] = []
    monkeypatch.setattr(process, "_tell", lambda _, data: told.append(data))
    monkeypatch.setattr("app.models.downloads.transfer.MOST_BYTES", MIB)  # all files are too large
    hub.bytes_per_second = 8 * MIB
    plan = plan_download(WANTED)
    process._transfer(plan, 0.001)
    assert is_whole(plan.wanted.repository / "snapshots" / plan.commit)
    assert told[0]["done_bytes"] < BYTES
    assert {each["waits"] for each in told} == {False}
    hub.repositories.clear()
    with pytest.raises(Exception, match="404"):
        process._transfer(replace(plan, wanted=Wanted("some/body")), 0.001)


def test_a_hub_with_a_fault_of_its_own_is_asked_again(hub: FakeHub) -> None:
    plan = plan_download(WANTED)
    hub.status, hub.failures = 503, 3
    assert is_whole(transferred(plan))


@pytest.mark.parametrize(
    ("wanted", "words"),
    [
        (Wanted("somebody/else"), "has no somebody/else, or it is private"),
        (Wanted(SOURCE, revision="v9"), "has no revision 'v9'"),
        (Wanted(SOURCE, variant="fp8"), "no files of its variant 'fp8'"),
    ],
)
def test_what_is_not_there_is_named(wanted: Wanted, words: str) -> None:
    with pytest.raises(DownloadFailed, match=words) as failed:
        plan_download(wanted)
    assert not failed.value.transient


def test_a_disk_without_room_is_told_with_both_numbers_before_a_weight_comes(hub: FakeHub) -> None:
    hub.repositories[SOURCE].sizes[TRANSFORMER] = 2**60
    plan = plan_download(WANTED)
    with pytest.raises(DownloadFailed, match=r"needs .* bytes.*, and the disk of .* has .* free") as failed:
        check_disk(plan)
    assert failed.value.code == "disk_full"
    assert failed.value.data["needed_bytes"] > 2**60 > failed.value.data["free_bytes"]
    assert all("model_index" in each for each in hub.file_requests())
