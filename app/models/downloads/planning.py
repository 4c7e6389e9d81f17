"""Plans a download: asks the hub which files the model has, and looks which of them are on the disk.

`plan_download` asks the hub. The free disk is compared before anything is downloaded.
"""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path

from app.jobs import Json
from app.models.components import ANSWER_SECONDS, ModelUnavailable
from app.models.downloads.cached import INDEX, cache_folder, repository_folder
from app.models.downloads.selection import NoSuchVariant, select_files
from app.models.entries import ModelEntry
from app.models.hub import explain_hub_error, may_pass
from app.units import format_bytes

MARGIN_BYTES = 64 * 2**20  # that a download leaves free


class DownloadFailed(ModelUnavailable):
    """The model cannot be downloaded. `code` is the job's error code, `data` the numbers behind it."""

    def __init__(
        self, message: str, *, code: str = "model_unavailable", transient: bool = False, **data: int
    ) -> None:
        self.code = code
        self.data = data
        super().__init__(message, transient=transient)


@dataclass(frozen=True, slots=True)
class Wanted:
    """What of the hub a model needs: its repository, a revision and a variant.

    `parts`: the components whose weights it takes from elsewhere. `only`: the one component that is wanted.
    """

    source: str
    revision: str = "main"
    variant: str | None = None
    parts: tuple[str, ...] = ()
    only: str | None = None

    @classmethod
    def by(cls, entry: ModelEntry, only: str | None = None) -> "Wanted":
        """What the entry needs, of a component if `only` names one."""
        return cls(entry.source, entry.revision or "main", entry.variant, tuple(sorted(entry.parts)), only)

    @property
    def repository(self) -> Path:
        """The repository's folder in the cache."""
        return repository_folder(self.source)


@dataclass(frozen=True, slots=True)
class HubFile:
    """A file of a repository: its bytes, and the name of its blob in the cache.

    `sha256` is known for files in large file storage; the blob has that name then, and git's id otherwise.
    """

    path: str
    size_bytes: int
    blob: str
    sha256: str | None = None

    def stored_bytes(self, repository: Path) -> int:
        """Bytes of the file that are on this machine, those of a download that broke off included."""
        blob = repository / "blobs" / self.blob
        if blob.exists():
            return self.size_bytes
        parts = (blob.with_name(f"{self.blob}.incomplete"), *blob.parent.glob(f"{self.blob}.*.incomplete"))
        return min(self.size_bytes, max((_size(part) for part in parts), default=0))


@dataclass(frozen=True, slots=True)
class DownloadPlan:
    """The files of a model at a commit of its repository."""

    wanted: Wanted
    commit: str
    files: tuple[HubFile, ...]

    @property
    def contents(self) -> tuple[HubFile, ...]:
        """The files, one of those that share a blob: repositories hold a content under several paths."""
        return tuple({file.blob: file for file in self.files}.values())

    @property
    def total_bytes(self) -> int:
        """Bytes of all contents."""
        return sum(file.size_bytes for file in self.contents)

    @property
    def stored_bytes(self) -> int:
        """Bytes of them that are on the disk now."""
        return sum(file.stored_bytes(self.wanted.repository) for file in self.contents)

    @property
    def missing_bytes(self) -> int:
        """Bytes that would be downloaded now."""
        return self.total_bytes - self.stored_bytes


def plan_download(wanted: Wanted) -> DownloadPlan:
    """Ask the hub for the model's files. Raises `DownloadFailed`: gated, not found, not reachable."""
    from huggingface_hub import HfApi, hf_hub_download
    from huggingface_hub.hf_api import RepoFile

    api = HfApi(library_name="framefit")
    try:
        commit = str(api.model_info(wanted.source, revision=wanted.revision, timeout=ANSWER_SECONDS).sha)
        listed = api.list_repo_tree(wanted.source, recursive=True, revision=commit)
        files = {each.path: _hub_file(each) for each in listed if isinstance(each, RepoFile)}
        if INDEX not in files:
            raise DownloadFailed(f"{wanted.source} is no model in diffusers' format: it has no {INDEX}")
        index_path = hf_hub_download(wanted.source, INDEX, revision=commit)
        index = json.loads(Path(index_path).read_text(encoding="utf-8"))
        names = select_files(files, index, wanted.variant, wanted.parts, wanted.only)
    except NoSuchVariant as error:
        raise DownloadFailed(f"{wanted.source}: {error}") from None
    except DownloadFailed:
        raise
    except Exception as error:
        raise failure_of(error, wanted) from error
    return DownloadPlan(wanted, commit, tuple(files[name] for name in sorted(names)))


def check_disk(plan: DownloadPlan) -> None:
    """Raise `DownloadFailed` if the disk has less free than the download needs."""
    require_disk(plan.wanted.source, plan.missing_bytes)


def require_disk(source: str, needed: int) -> None:
    """As `check_disk`, for a download of `needed` bytes."""
    folder = cache_folder()
    there = next(each for each in (folder, *folder.parents) if each.is_dir())
    free = shutil.disk_usage(there).free
    if needed and needed + MARGIN_BYTES > free:
        what = f"the download of {source} needs {format_bytes(needed)} ({needed:,} bytes)"
        has = f"the disk of {folder} has {format_bytes(free)} free ({free:,} bytes)"
        message = f"{what}, and {has}: free space, or set HF_HOME to a folder on another disk"
        raise DownloadFailed(message, code="disk_full", needed_bytes=needed, free_bytes=free)


def failure_of(error: BaseException, wanted: Wanted) -> DownloadFailed:
    """The failure behind an error of the hub's client or of the disk."""
    full = isinstance(error, OSError) and _is_full(error)
    code = "disk_full" if full else "model_unavailable"
    why = explain_hub_error(error, wanted.source, wanted.revision)
    return DownloadFailed(why, code=code, transient=may_pass(error))


def _is_full(error: OSError) -> bool:
    import errno

    return error.errno in (errno.ENOSPC, errno.EDQUOT)


def _hub_file(each: object) -> HubFile:
    lfs = getattr(each, "lfs", None)
    path, blob = str(each.path), str(each.blob_id)  # type: ignore[attr-defined]
    if lfs is None:
        return HubFile(path, int(each.size), blob)  # type: ignore[attr-defined]
    return HubFile(path, int(lfs.size), str(lfs.sha256), str(lfs.sha256))


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0


def plan_as_json(plan: DownloadPlan) -> Json:
    """What a process that has not asked the hub wants to know of the plan."""
    return {
        "commit": plan.commit,
        "total_bytes": plan.total_bytes,
        "missing_bytes": plan.missing_bytes,
        "blobs": [(file.blob, file.size_bytes) for file in plan.contents],
    }
