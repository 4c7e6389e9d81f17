"""Pictures as files of one local folder, which all processes of a service share.

A file is written into `new/` and moved up when a row names it. So only `new/` is searched for what a crash
has left, and what another database has kept in the same folder stays.
"""

import os
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from app.artifacts.local_folder import sync
from app.artifacts.modes import is_any_user_of_group_0
from app.artifacts.pictures import PictureMissing, is_key

FOLDER = "pictures"  # in the data folder
NEW = "new"
OWNER_ONLY = 0o700
OWNER_AND_GROUP = 0o770
SYNCED_AT_ONCE = 8


def stored_names(key: str) -> tuple[str, str]:
    """Return the paths in the data folder where a picture may be: at first, and where it is kept."""
    return f"{FOLDER}/{NEW}/{key}", f"{FOLDER}/{key}"


class PictureFolder:
    """A folder of pictures, made when the first one is stored. Its methods raise `OSError`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder.absolute()
        self._new = self.folder / NEW
        self._sync_new = SharedSync(self._new)

    def publish(self, pictures: Mapping[str, bytes]) -> None:
        """Write the files and return when they are on the disk under their names.

        Files and folder are synced at the same time, as are those of threads that publish at the same time: a
        file system with a journal then writes it once for all. One after the other takes much longer.
        """
        try:
            with ExitStack() as opened:
                descriptors = [opened.enter_context(self._written(*one)) for one in pictures.items()]
                names = self._sync_new.begin()
                _sync_all(descriptors)
                names.result()
        except BaseException:
            for key in pictures:
                with suppress(OSError):
                    self._place_of(key)[0].unlink(missing_ok=True)
            raise

    def keep(self, keys: Sequence[str]) -> None:
        """Move the files up. Not synced: after a power failure they are found in either place."""
        for key in keys:
            new, kept = self._place_of(key)
            with suppress(FileNotFoundError):
                new.rename(kept)

    def read(self, key: str) -> bytes:
        """Return the file's content."""
        new, kept = self._place_of(key)
        for path in (kept, new, kept):  # it may be moved up meanwhile
            with suppress(FileNotFoundError):
                return path.read_bytes()
        raise PictureMissing(key)

    def has(self, key: str) -> bool:
        """Whether there is a file of that key."""
        return any(path.is_file() for path in self._place_of(key))

    def remove(self, keys: Sequence[str]) -> None:
        """Delete the files, then let their absence reach the disk."""
        changed = set()
        for key in keys:
            for path in self._place_of(key):  # in this order: it may be moved up meanwhile
                with suppress(FileNotFoundError):
                    path.unlink()
                    changed.add(path.parent)
        for folder in changed:
            with suppress(FileNotFoundError):
                sync(folder)

    def not_kept(self, older_than_seconds: float) -> Iterator[str]:
        """Yield the keys of files that were not moved up, were they written so long ago or after now."""
        now = time.time()
        with suppress(FileNotFoundError), os.scandir(self._new) as entries:
            for entry in entries:
                with suppress(FileNotFoundError):
                    age = now - entry.stat(follow_symlinks=False).st_mtime
                    if is_key(entry.name) and not -older_than_seconds <= age <= older_than_seconds:
                        yield entry.name

    @contextmanager
    def _written(self, key: str, data: bytes) -> Iterator[int]:
        """Write a file; yield its descriptor, with which it can be synced."""
        with os.fdopen(self._create(self._place_of(key)[0]), "wb") as file:
            file.write(data)
            file.flush()
            yield file.fileno()

    def _create(self, path: Path) -> int:
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL
        folder_mode = OWNER_AND_GROUP if is_any_user_of_group_0() else OWNER_ONLY
        mode = folder_mode & 0o666
        try:
            return os.open(path, flags, mode)
        except FileNotFoundError:
            for folder in (self.folder, self._new):  # not those above: they may come back
                folder.mkdir(mode=folder_mode, exist_ok=True)
                sync(folder.parent)
            return os.open(path, flags, mode)

    def _place_of(self, key: str) -> tuple[Path, Path]:
        """Return where the picture is at first, and where it is kept."""
        if not is_key(key):
            raise ValueError(f"not the key of a picture: {key!r}")
        return self._new / key, self.folder / key


def _sync_all(descriptors: Sequence[int]) -> None:
    if len(descriptors) == 1:
        os.fsync(descriptors[0])
    elif descriptors:
        with ThreadPoolExecutor(min(len(descriptors), SYNCED_AT_ONCE)) as pool:
            list(pool.map(os.fsync, descriptors))


class SharedSync:
    """Syncs a folder on a thread of its own. Those who ask while a sync runs share the next one."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="picture-sync")
        self._lock = threading.Lock()
        self._asked = self._synced = 0

    def begin(self) -> Future[None]:
        """Return what is done when a sync has ended that began after this call, or has `OSError`."""
        with self._lock:
            self._asked += 1
            return self._thread.submit(self._reach, self._asked)

    def _reach(self, number: int) -> None:
        if self._synced < number:
            covered = self._asked
            sync(self._folder)
            self._synced = covered
