"""Backs a service up while it runs, and puts a backup back into an empty data folder.

A backup is a folder: the database's copy, the data folder's files, and `backup.json`, which lists them with
sizes and checksums and is written last. A folder without it is no backup. The database is copied first:
every file that it names was complete by then, and files are replaced as a whole, so that a copy is never half
old and half new.
"""

import hashlib
import json
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path

from adaptive.version import __version__
from app.artifacts.picture_folder import stored_names
from app.artifacts.whole_file import replace_text
from app.config import Settings
from app.service.data_folder import LOCK_FILE, locked_data_folder, prepare_data_folder
from app.store.upkeep.backup import HEAD_REVISION, copy_database, inspect_copy, sqlite_file
from app.units import format_bytes

MANIFEST = "backup.json"
DATABASE = "framefit.sqlite3"
DUMP = "framefit.dump"  # pg_dump's, if the operator made one before
FORMAT = 1
BLOCK_BYTES = 2**20
# Of the running service only, or made again.
NOT_KEPT = {
    LOCK_FILE,
    "service.json",
    "workers.json",
    "unused_gpus.json",
    "last_run.json",
    "log-level",
    "serve.log",
    "lost+found",
}
LAST_RUN = {"running": False, "stops": 0, "oom_kills": None}


class BackupRefused(Exception):
    """A backup cannot be made or put back: why, and what to do."""


@dataclass(frozen=True, slots=True)
class StoredFile:
    """A file of a backup. A file that is a hard link has no checksum: the original's bytes are its own."""

    bytes: int
    sha256: str | None


@dataclass(frozen=True, slots=True)
class Backup:
    """What `backup.json` says. `revision` and `jobs` are None where the database is not part of it.

    `missing` are files that jobs name and the data folder did not have.
    """

    version: str
    created_at: float
    revision: str | None
    jobs: int | None
    files: dict[str, StoredFile] = field(default_factory=dict)
    missing: tuple[str, ...] = ()

    @property
    def bytes(self) -> int:
        """The size of all files."""
        return sum(stored.bytes for stored in self.files.values())


def make_backup(settings: Settings, place: Path, *, link: bool = False, models: bool = False) -> Backup:
    """Back the service up into `place`, which must be empty or absent; the service may run meanwhile.

    `link`: the jobs' files become hard links, which take no space. `models`: the models folder, too. A
    PostgreSQL database is not included. Raises `BackupRefused`, `StoreUnavailable` or `OSError`.
    """
    data = settings.data_dir
    if not data.is_dir():
        raise BackupRefused(f"there is no data folder {data}: set FRAMEFIT_DATA_DIR or --data-dir")
    if place.resolve().is_relative_to(data.resolve()):
        raise BackupRefused(f"{place} lies in the data folder itself: choose a folder elsewhere")
    if place.exists() and any(path.name != DUMP for path in place.iterdir()):
        raise BackupRefused(f"{place} is not empty: choose a new folder")
    place.mkdir(mode=0o700, parents=True, exist_ok=True)
    source = sqlite_file(settings.resolved_database_url)
    _require_space(data, source, place, link=link, models=models)
    copied = None if source is None else copy_database(source, place / DATABASE)
    files = {} if copied is None else {DATABASE: _measured(place / DATABASE)}
    for path in _kept_files(data, source, models=models):
        name = path.relative_to(data)
        stored = _store(path, place / name, link=link and name.parts[0] == "jobs")
        if stored is not None:
            files[name.as_posix()] = stored
    # A picture that was moved up meanwhile may have been seen in neither place.
    pictures = () if copied is None else copied.pictures
    for key in pictures:
        new, kept = stored_names(key)
        if new not in files and kept not in files:
            stored = _store(data / kept, place / kept, link=False)
            if stored is not None:
                files[kept] = stored
    lost = [stored_names(key)[1] for key in pictures if files.keys().isdisjoint(stored_names(key))]
    named = () if copied is None else copied.named_files
    backup = Backup(
        version=__version__,
        created_at=time.time(),
        revision=None if copied is None else copied.revision,
        jobs=None if copied is None else copied.jobs,
        files=files,
        missing=(*(name for name in named if name not in files), *lost),
    )
    replace_text(place / MANIFEST, json.dumps({"format": FORMAT, **asdict(backup)}, indent=1))
    return backup


def read_backup(place: Path) -> Backup:
    """Return what is in a backup, once every file has been checked. Raises `BackupRefused`."""
    try:
        stored = json.loads((place / MANIFEST).read_text(encoding="utf-8"))
        if stored.pop("format") != FORMAT:
            raise BackupRefused(f"{place} was made by another version of Framefit: restore it with that one")
        stored["files"] = {name: StoredFile(**each) for name, each in stored["files"].items()}
        backup = Backup(**{**stored, "missing": tuple(stored["missing"])})
    except FileNotFoundError:
        raise BackupRefused(f"{place} is no complete backup: it has no {MANIFEST}") from None
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise BackupRefused(f"{place / MANIFEST} cannot be read: {error}") from None
    for name, expected in backup.files.items():
        _check(place, name, expected)
    if backup.revision is not None:
        inspect_copy(place / DATABASE)
        if backup.revision > HEAD_REVISION:
            raise BackupRefused(
                f"{place} has the schema {backup.revision} of version {backup.version}; this version "
                f"{__version__} knows {HEAD_REVISION} at most: install that version"
            )
    return backup


def restore_backup(settings: Settings, place: Path) -> Backup:
    """Put a backup back into the data folder, which must be empty or absent. Nothing may run on it.

    Raises `BackupRefused`, `DataFolderRefused`, `StoreUnavailable` or `OSError`.
    """
    data, backup = settings.data_dir, read_backup(place)
    target = sqlite_file(settings.resolved_database_url)
    if target is None and backup.revision is not None:
        raise BackupRefused(f"{place} holds an SQLite database: unset FRAMEFIT_DATABASE_URL")
    if data.exists() and any(data.iterdir()):
        raise BackupRefused(f"the data folder {data} is not empty: move it away, or set FRAMEFIT_DATA_DIR")
    if target is not None and target.exists():
        raise BackupRefused(f"there is a database {target} already: move it away")
    prepare_data_folder(data)
    with locked_data_folder(data):
        not_copied = _files_of_database(target) | {data.absolute() / DATABASE}
        for name in backup.files:
            path = data / name
            if path.absolute() not in not_copied:
                _copy_with_modes(place, name, path)
        replace_text(data / "last_run.json", json.dumps(LAST_RUN))
        if target is not None and backup.revision is not None:  # last: without it there is no service
            target.parent.mkdir(parents=True, exist_ok=True)
            draft = target.with_name(f"{target.name}.new")
            shutil.copyfile(place / DATABASE, draft)
            for left in _files_of_database(target) - {target.absolute()}:
                left.unlink(missing_ok=True)
            draft.replace(target)
    return backup


def _copy_with_modes(place: Path, name: str, target: Path) -> None:
    """Copy a file of a backup; it and its folders get the modes that they have there."""
    for folder in reversed(Path(name).parents[:-1]):
        here = target.parents[len(Path(name).parts) - 1] / folder
        if not here.exists():
            here.mkdir()
            shutil.copymode(place / folder, here)
    shutil.copy(place / name, target)


def _files_of_database(database: Path | None) -> set[Path]:
    """The database and SQLite's own files beside it, which fit no copy of it."""
    if database is None:
        return set()
    return {database.absolute().with_name(database.name + end) for end in ("", "-wal", "-shm", "-journal")}


def _kept_files(data: Path, database: Path | None, *, models: bool) -> Iterator[Path]:
    left_out = NOT_KEPT if models else NOT_KEPT | {"models"}
    copied = _files_of_database(database)
    for folder, folders, names in os.walk(data):
        here = Path(folder)
        if here == data:
            folders[:] = [name for name in folders if name not in left_out]
            names = [name for name in names if name not in left_out and not name.startswith(DATABASE)]
        for name in sorted(names):
            path = here / name
            if path.absolute() in copied:
                continue
            if not name.endswith((".part", ".new")) and path.is_file():
                yield path


def _store(source: Path, target: Path, *, link: bool) -> StoredFile | None:
    """Copy or link a file; None if it was deleted meanwhile. Its folder gets the mode of the original's."""
    if not target.parent.exists():
        target.parent.mkdir(parents=True)
        with suppress(FileNotFoundError):
            shutil.copymode(source.parent, target.parent)
    try:
        if link:
            try:
                os.link(source, target)
                return StoredFile(target.stat().st_size, None)
            except OSError as error:
                if isinstance(error, FileNotFoundError):
                    raise
                fault = f"{source} cannot be linked to {target}: {error.strerror}"
                raise BackupRefused(f"{fault}: make the backup without --link") from None
        shutil.copy(source, target)  # with its mode
    except FileNotFoundError:
        if source.exists():
            raise
        return None
    return _measured(target)


def _measured(path: Path) -> StoredFile:
    """Return the file's size and checksum once it is on the disk."""
    digest, size = hashlib.sha256(), 0
    with path.open("rb") as file:
        while block := file.read(BLOCK_BYTES):
            digest.update(block)
            size += len(block)
        os.fsync(file.fileno())
    return StoredFile(size, digest.hexdigest())


def _check(place: Path, name: str, expected: StoredFile) -> None:
    path = place / name
    if not path.resolve().is_relative_to(place.resolve()):
        raise BackupRefused(f"{place / MANIFEST} names {name}, which lies outside the backup")
    if not path.is_file():
        raise BackupRefused(f"{place} is incomplete: {name} is missing")
    found = path.stat().st_size if expected.sha256 is None else _measured(path)
    if found not in (expected, expected.bytes):
        raise BackupRefused(f"{path} is damaged: its size or checksum differs from that in {MANIFEST}")


def _require_space(data: Path, database: Path | None, place: Path, *, link: bool, models: bool) -> None:
    needed = sum(
        path.stat().st_size
        for path in _kept_files(data, database, models=models)
        if not (link and path.relative_to(data).parts[0] == "jobs") and path.exists()
    )
    needed += database.stat().st_size if database is not None and database.exists() else 0
    free = shutil.disk_usage(place).free
    if needed > free:
        raise BackupRefused(
            f"the backup needs {format_bytes(needed)}, but {place} has {format_bytes(free)} free: free some, "
            "or use --link on the disk of the data folder"
        )
