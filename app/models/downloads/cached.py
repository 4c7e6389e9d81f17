"""What of a model lies in the hub client's cache: whole, in part, or not at all; and its removal.

Reads names and sizes of files only, and asks no hub. A download that Framefit finished has left a list of its
files, `.framefit/COMMIT.json`, in the repository's folder: one for each variant, and for each choice of
components that come from elsewhere. Of what other programs have downloaded, the folder itself tells whether
it is whole. Imports the hub's client for the cache's place only.
"""

import json
import shutil
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from app.artifacts.whole_file import replace_text
from app.models.downloads.selection import NoSuchVariant, select_files
from app.models.entries import ModelEntry

INDEX = "model_index.json"
_COMMIT_LENGTH = 40


def cache_folder() -> Path:
    """The folder in which the hub's client keeps files; it need not exist."""
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE).expanduser()


def repository_folder(source: str) -> Path:
    """The folder of a repository in the cache; it need not exist."""
    return cache_folder() / f"models--{source.replace('/', '--')}"


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A revision of a repository that is on this machine as a whole."""

    folder: Path
    files: Mapping[str, int]  # bytes by path

    @property
    def total_bytes(self) -> int:
        """Bytes of the files that the pipeline loads; paths that link to one content count once."""
        return sum({(self.folder / name).resolve(): size for name, size in self.files.items()}.values())


def stored_snapshot(entry: ModelEntry, only: str | None = None) -> Snapshot | None:
    """The model's files in the cache, if all of them are there; those of a component if `only` names one."""
    repository = repository_folder(entry.source)
    commit = stored_commit(entry)
    if commit is None:
        return None
    folder = repository / "snapshots" / commit
    names = _listed(repository, commit, entry.variant, entry.parts, only)
    if names is None:
        names = _complete(folder, entry.variant, entry.parts, only)
    try:
        return None if names is None else Snapshot(folder, {name: _size(folder / name) for name in names})
    except OSError:  # a file is missing
        return None


def stored_commit(entry: ModelEntry) -> str | None:
    """The commit that the cache has for the entry's revision, whole or in part; None if it has none."""
    return _commit_of(repository_folder(entry.source), entry.revision or "main")


def list_files(
    repository: Path,
    commit: str,
    variant: str | None,
    names: Iterable[str],
    parts: Collection[str] = (),
    only: str | None = None,
) -> None:
    """Note which files the model has, once all are there: without weights of `parts`, or `only` of one."""
    folder = repository / ".framefit"
    folder.mkdir(exist_ok=True)
    replace_text(_list_path(repository, commit, variant, parts, only), json.dumps(sorted(names)))


def point_to(repository: Path, revision: str, commit: str) -> None:
    """Let a branch or tag name this commit, as the hub's client does; a commit needs no name."""
    if revision == commit:
        return
    path = repository / "refs" / revision
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_text(path, commit)


def remove_revision(source: str, revision: str | None, keep: Collection[str] = ()) -> int:
    """Remove a revision of a repository and what only it used; returns the bytes that came free.

    Its files `keep` stay. Files of a download that broke off go, too.
    """
    repository = repository_folder(source)
    before = _tree_bytes(repository)
    commit = _commit_of(repository, revision or "main")
    if commit is not None and keep:
        _remove_files(repository, commit, keep)
    elif commit is not None:
        shutil.rmtree(repository / "snapshots" / commit, ignore_errors=True)
        for path in _files(repository / "refs"):
            if path.read_text(encoding="utf-8").strip() == commit:
                path.unlink()
        for stale in (
            (repository / ".framefit").glob(f"{commit}*"),
            (repository / "trees").glob(f"{commit}*"),
        ):
            for path in stale:
                path.unlink(missing_ok=True)
    used = {path.resolve() for path in _files(repository / "snapshots")}
    for path in _files(repository / "blobs"):
        if path.resolve() not in used:
            path.unlink(missing_ok=True)
    if not used:
        shutil.rmtree(repository, ignore_errors=True)
        shutil.rmtree(cache_folder() / ".locks" / repository.name, ignore_errors=True)
    return before - _tree_bytes(repository)


def _remove_files(repository: Path, commit: str, keep: Collection[str]) -> None:
    """Remove a revision's files but those of `keep`, and the lists of models that are no longer whole."""
    folder = repository / "snapshots" / commit
    for path in list(_files(folder)):
        if path.relative_to(folder).as_posix() not in keep:
            path.unlink()
    for path in (repository / ".framefit").glob(f"{commit}*.json"):
        if not set(json.loads(path.read_text(encoding="utf-8"))) <= set(keep):
            path.unlink()


def _list_path(
    repository: Path, commit: str, variant: str | None, parts: Collection[str], only: str | None
) -> Path:
    without = "".join(f"-{part}" for part in sorted(parts)) + (f"={only}" if only else "")
    return repository / ".framefit" / f"{commit}{without}{f'.{variant}' if variant else ''}.json"


def _commit_of(repository: Path, revision: str) -> str | None:
    if len(revision) == _COMMIT_LENGTH and (repository / "snapshots" / revision).is_dir():
        return revision
    try:
        commit = (repository / "refs" / revision).read_text(encoding="utf-8").strip()
    except (OSError, ValueError):
        return None
    return commit or None


def _listed(
    repository: Path, commit: str, variant: str | None, parts: Collection[str], only: str | None
) -> list[str] | None:
    try:
        names = json.loads(_list_path(repository, commit, variant, parts, only).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return [str(name) for name in names] if isinstance(names, list) else None


def _complete(
    folder: Path, variant: str | None, parts: Collection[str], only: str | None
) -> list[str] | None:
    """The names of a model's files in a folder; None if one is missing, as far as the folder itself tells."""
    try:
        if only is not None and not (folder / INDEX).exists():  # as diffusers loads one component
            index = {only: ["diffusers", only]}
        else:
            index = json.loads((folder / INDEX).read_text(encoding="utf-8"))
        there = [path.relative_to(folder).as_posix() for path in _files(folder)]
        names = select_files(there, index, variant, parts, only)
        if only is not None:
            index = {only: index[only]}
        for name in names:
            if name.endswith(".json") and ".index." in name:
                shards = json.loads((folder / name).read_text(encoding="utf-8"))["weight_map"].values()
                if not {f"{Path(name).parent.as_posix()}/{shard}" for shard in shards} <= names:
                    return None
    except (OSError, ValueError, KeyError, TypeError, AttributeError, NoSuchVariant):
        return None
    return None if _lacks_weights(index, names, parts) else sorted(names)


def _lacks_weights(index: Mapping[str, Any], names: frozenset[str], parts: Collection[str]) -> bool:
    from app.models.components import has_weights

    for part, value in index.items():
        if isinstance(value, list) and len(value) == 2 and all(isinstance(each, str) for each in value):
            own = [name for name in names if name.startswith(f"{part}/")]
            loads = part not in parts and has_weights(*value)
            if loads and not any(name.endswith((".safetensors", ".bin")) for name in own):
                return True
            if not own:
                return True
    return False


def _size(path: Path) -> int:
    return path.stat().st_size


def _files(folder: Path) -> Iterator[Path]:
    return (path for path in folder.rglob("*") if path.is_file() or path.is_symlink())


def _tree_bytes(folder: Path) -> int:
    """Bytes of a repository's folder; links count nothing, nor does what goes meanwhile."""
    found = 0
    for path in _files(folder):
        with suppress(FileNotFoundError):
            found += 0 if path.is_symlink() else path.lstat().st_size
    return found
