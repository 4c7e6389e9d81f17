"""The pictures of jobs: stored before their job is, and gone when nothing needs them.

The first tests run over both places of pictures: the files of an SQLite service, and the table of PostgreSQL.
"""

import os
import resource
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from roots_rights import without_roots_rights
from sqlalchemy import text

from app.artifacts import picture_folder
from app.artifacts.picture_folder import PictureFolder, SharedSync
from app.artifacts.pictures import PictureMissing, Pictures, new_key
from app.config import Settings
from app.jobs import JobSpec
from app.service.disposal import Disposal
from app.store import (
    ImageMissing,
    ImageUnreadable,
    JobStore,
    QueueFull,
    StoreUnavailable,
    Submission,
    intake,
    open_store,
)
from app.store.pictures import foresight, job_pictures

OpenStore = Callable[..., JobStore]
MakeSpec = Callable[..., JobSpec]
OLD_SECONDS = job_pictures.ORPHAN_SECONDS + 60


class Kept:
    """A store, and a look into the place of its pictures."""

    def __init__(self, store: JobStore) -> None:
        self.store = store
        self.place: Pictures = store._place

    def keys(self) -> set[str]:
        """Everything in the place, whatever its age."""
        if isinstance(self.place, PictureFolder):
            return {path.name for path in self.place.folder.rglob("*") if path.is_file()}
        with self.store._database.reading() as connection:
            return set(connection.execute(text("select key from picture_bytes")).scalars())

    def age(self) -> None:
        """Make everything in the place old."""
        if isinstance(self.place, PictureFolder):
            then = time.time() - OLD_SECONDS
            for path in self.place.folder.rglob("*"):
                os.utime(path, (then, then))
        else:
            statement = text(f"update picture_bytes set published_at = published_at - {OLD_SECONDS}")
            self.store._database.run(lambda tx: tx.execute(statement))


@pytest.fixture
def kept(store: JobStore) -> Kept:
    return Kept(store)


@pytest.fixture
def files(tmp_path: Path) -> Iterator[Kept]:
    """A store whose pictures are files."""
    store = open_store(Settings(data_dir=tmp_path))
    store.migrate()
    yield Kept(store)
    store.close()


def submission_of(spec: JobSpec, image: bytes = b"image", **more: Any) -> Submission:
    return Submission(spec, image, spec.fingerprint(image), **more)


def test_a_place_keeps_what_it_is_given_until_that_is_removed(kept: Kept) -> None:
    given = {new_key(): bytes([number]) * 100_000 for number in range(20)}
    kept.place.publish(given)
    assert {key: kept.place.read(key) for key in given} == given
    first, second, *rest = given
    kept.place.keep([first, *rest])
    assert {key: kept.place.read(key) for key in given} == given
    kept.place.remove([first, second, new_key()])
    kept.place.remove([first])
    assert kept.keys() == set(rest)
    with pytest.raises(PictureMissing):
        kept.place.read(first)


def test_a_place_tells_what_is_old(kept: Kept) -> None:
    old, new = new_key(), new_key()
    kept.place.publish({old: b"old"})
    kept.age()
    kept.place.publish({new: b"new"})
    assert list(kept.place.not_kept(job_pictures.ORPHAN_SECONDS)) == [old]


def test_many_who_publish_at_once_all_find_theirs(kept: Kept) -> None:
    given = [{new_key(): bytes([number])} for number in range(24)]
    threads = [threading.Thread(target=kept.place.publish, args=(one,)) for one in given]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for one in given:
        for key, data in one.items():
            assert kept.place.read(key) == data


def test_another_service_on_the_same_database_reads_the_pictures(
    open_store: OpenStore, make_spec: MakeSpec
) -> None:
    job, _ = open_store().submit(submission_of(make_spec(), last_image=b"last"))
    other = open_store()
    assert (other.image(job.id), other.last_image(job.id)) == (b"image", b"last")
    assert other.get(job.id).has_last_image


def test_the_pictures_are_in_their_place_before_the_job_is_in_the_table(
    kept: Kept, make_spec: MakeSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    inserted, seen = intake.submit_all, []

    def looking(tx: Any, submissions: Any, pictures: Any) -> Any:
        seen.extend(kept.place.read(picture.key) for own in pictures for picture in own)
        return inserted(tx, submissions, pictures)

    monkeypatch.setattr(intake, "submit_all", looking)
    kept.store.submit_all([submission_of(make_spec(), last_image=b"last"), submission_of(make_spec())])
    assert seen == [b"image", b"last", b"image"]


def test_a_request_that_gets_no_job_leaves_no_picture_and_writes_none_if_that_is_foreseen(
    open_store: OpenStore, make_spec: MakeSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = Kept(open_store(max_queued=2))
    submission = submission_of(make_spec(), idempotency_key="k")
    job, _ = kept.store.submit(submission)
    first = kept.keys()
    stored: list[str] = []
    publish = kept.place.publish
    monkeypatch.setattr(kept.place, "publish", lambda given: (stored.extend(given), publish(given)))

    def requests() -> None:
        assert kept.store.submit(submission) == (job, False)
        with pytest.raises(QueueFull):
            kept.store.submit_all([submission_of(make_spec()), submission_of(make_spec())])
        assert kept.keys() == first

    requests()
    assert len(stored) == 2, "that the queue is full is not known before it was found full"
    requests()
    assert len(stored) == 2
    # Somebody else takes the last place, or the key, after the look.
    monkeypatch.setattr(foresight, "foresee", lambda *_: None)
    requests()
    assert len(stored) == 5


def test_a_crash_between_picture_and_job_leaves_what_is_swept_once_it_is_old(
    kept: Kept, make_spec: MakeSpec, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    class Crash(BaseException):
        pass

    run = kept.store._database.run

    def crash(operation: Any) -> Any:
        if "PictureTable" in getattr(operation, "__qualname__", ""):
            return run(operation)
        raise Crash

    job, _ = kept.store.submit(submission_of(make_spec()))
    own = kept.keys()
    with monkeypatch.context() as patch:
        patch.setattr(kept.store._database, "run", crash)
        with pytest.raises(Crash):
            kept.store.submit(submission_of(make_spec(), last_image=b"last"))
    assert len(kept.keys()) == 3
    disposal = Disposal(Settings(data_dir=tmp_path), kept.store)
    disposal.turn()
    assert len(kept.keys()) == 3, "a submission of another process may be under way"
    kept.age()
    disposal.turn()
    assert len(kept.keys()) == 3, "it is looked for at the start, then every hour"
    Disposal(Settings(data_dir=tmp_path), kept.store).turn()
    assert kept.keys() == own
    assert kept.store.image(job.id) == b"image"


def test_a_submission_that_is_under_way_keeps_its_pictures_whatever_their_age(
    kept: Kept, make_spec: MakeSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish = kept.place.publish

    def swept_at_once(given: Any) -> None:
        publish(given)
        kept.age()  # the clock jumps
        kept.store.sweep_pictures()

    monkeypatch.setattr(kept.place, "publish", swept_at_once)
    job, _ = kept.store.submit(submission_of(make_spec()))
    kept.store.sweep_pictures()
    assert kept.store.image(job.id) == b"image"


def test_a_submission_that_hung_for_so_long_that_others_may_sweep_it_is_refused(
    kept: Kept, make_spec: MakeSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(job_pictures, "LONGEST_SECONDS", -1.0)
    with pytest.raises(StoreUnavailable, match="send it again"):
        kept.store.submit(submission_of(make_spec()))
    assert list(kept.store.page()) == []


def test_a_database_that_refuses_leaves_no_file(files: Kept, make_spec: MakeSpec) -> None:
    limit = "pragma max_page_count = {}"
    files.store._database.run(lambda tx: tx.execute(text(limit.format(1))))
    with pytest.raises(StoreUnavailable, match="full"):
        files.store.submit_all([submission_of(make_spec(prompt="x" * 1000))] * 100)
    assert files.keys() == set()
    files.store._database.run(lambda tx: tx.execute(text(limit.format(2**30))))
    assert len(files.keys()) == len(files.store.page(limit=1000))


def test_a_picture_that_cannot_be_written_is_a_refusal_without_a_job_or_a_file(
    files: Kept, make_spec: MakeSpec, tmp_path: Path
) -> None:
    files.store.add(make_spec(), b"image")
    before = files.keys()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**20, hard))
    try:
        with pytest.raises(StoreUnavailable, match="File too large"):
            files.store.add(make_spec(), bytes(2**21))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    (tmp_path / "pictures" / "new").chmod(0o500)
    with without_roots_rights(), pytest.raises(StoreUnavailable, match="Permission denied"):
        files.store.add(make_spec(), b"image")
    (tmp_path / "pictures" / "new").chmod(0o700)
    assert files.keys() == before
    assert len(files.store.page()) == 1


def test_nobody_but_the_service_may_read_the_files(files: Kept, make_spec: MakeSpec, tmp_path: Path) -> None:
    files.store.add(make_spec(), b"image")
    folder = tmp_path / "pictures"
    modes = {path.stat().st_mode & 0o777 for path in folder.rglob("*") if path.is_file()}
    assert (folder.stat().st_mode & 0o777, modes) == (0o700, {0o600})


def test_a_user_of_group_0_leaves_the_files_to_the_next_one(
    files: Kept, make_spec: MakeSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An engine that chooses user ids may choose another at the next start."""
    monkeypatch.setattr(picture_folder, "is_any_user_of_group_0", lambda: True)
    umask = os.umask(0o002)
    try:
        files.store.add(make_spec(), b"image")
    finally:
        os.umask(umask)
    folder = tmp_path / "pictures"
    modes = {path.stat().st_mode & 0o777 for path in folder.rglob("*") if path.is_file()}
    assert (folder.stat().st_mode & 0o777, modes) == (0o770, {0o660})


def test_an_image_that_is_lost_or_cut_is_told(files: Kept, make_spec: MakeSpec, tmp_path: Path) -> None:
    job = files.store.add(make_spec(), b"image")
    path = tmp_path / "pictures" / files.keys().pop()
    path.write_bytes(b"ima")
    with pytest.raises(ImageMissing, match=f"image of job {job.id} is damaged, 3 of its 5 bytes"):
        files.store.image(job.id)
    path.chmod(0)
    with without_roots_rights(), pytest.raises(ImageUnreadable, match="Permission denied"):
        files.store.image(job.id)
    path.unlink()
    with pytest.raises(ImageMissing, match="missing from the data folder"):
        files.store.image(job.id)
    assert files.store.last_image(job.id) is None
    shutil.rmtree(tmp_path / "pictures")
    assert files.store.add(make_spec(), b"image").id, "the folder is made anew"


def test_only_what_no_job_has_is_swept_and_what_another_database_has_kept_stays(
    files: Kept, make_spec: MakeSpec, tmp_path: Path
) -> None:
    job = files.store.add(make_spec(), b"image")
    folder = tmp_path / "pictures"
    (key,) = files.keys()
    (folder / key).rename(folder / "new" / key)  # a crash came after the commit
    (folder / "new" / new_key()).write_bytes(b"half a pic")
    others = {folder / new_key(), folder / "README", folder / "new" / "README"}
    for path in others:
        path.write_bytes(b"of somebody else")
    then = time.time() + 100 * OLD_SECONDS  # the clock was wrong
    for path in folder.rglob("*"):
        os.utime(path, (then, then))
    assert files.store.image(job.id) == b"image"
    files.store.sweep_pictures()
    assert {path for path in folder.rglob("*") if path.is_file()} == {folder / key, *others}
    assert files.store.image(job.id) == b"image"


def test_those_who_ask_while_a_folder_is_synced_share_the_next_sync(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, go_on, count = threading.Event(), threading.Event(), []

    def slow(_: Path) -> None:
        count.append(1)
        begun.set()
        assert go_on.wait(60)
        if len(count) == 1:
            raise OSError("the disk is gone")

    monkeypatch.setattr(picture_folder, "sync", slow)
    shared = SharedSync(tmp_path)
    first = shared.begin()
    assert begun.wait(60)
    others = [shared.begin() for _ in range(8)]
    go_on.set()
    with pytest.raises(OSError, match="the disk is gone"):
        first.result(60)
    for one in others:
        one.result(60)
    assert len(count) == 2


def test_a_key_is_no_path(files: Kept) -> None:
    for key in ("../framefit.sqlite3", "a/b", "", ".", "0" * 31):
        with pytest.raises(ValueError, match="not the key"):
            files.place.read(key)
