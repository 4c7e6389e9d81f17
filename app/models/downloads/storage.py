"""Where a model's weights are and how many bytes they have, as cards and tables show it.

Asks no hub: what is not on this machine has the size that the hub last told, or else the one that follows
from its configuration.
"""

from collections.abc import Collection
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from app.config import Settings
from app.jobs import Json
from app.models import profiles
from app.models.components import ModelUnavailable, has_hub_id, local_files
from app.models.downloads.cached import repository_folder, stored_snapshot
from app.models.downloads.known import known_blobs, known_size
from app.models.downloads.planning import HubFile
from app.models.entries import ModelEntry
from app.models.parts.entry_parts import part_paths


class Place(StrEnum):
    """Where a model's weights are."""

    BUILT_IN = "built_in"
    FOLDER = "folder"  # that the entry names, or in the data folder
    HUB_CACHE = "hub_cache"
    HUB = "hub"  # not on this machine, or only in part
    NOWHERE = "nowhere"  # to be brought by hand
    MISSING = "missing"  # the entry names a path that does not exist


@dataclass(frozen=True, slots=True)
class Storage:
    """A model's weights on this machine. `size_bytes` is None if nothing tells it.

    Files that the entry names for components count as well. `size_from`: disk, hub (as it last told) or
    configuration (weights alone, in the entry's dtype). `download_bytes`: what a download would bring now,
    without those files; 0 if all is here, None if unknown.
    """

    place: Place
    size_bytes: int | None
    size_from: str | None
    download_bytes: int | None
    folder: str | None = None

    @property
    def on_disk(self) -> bool:
        """Whether the model can be loaded without a download."""
        return self.place not in (Place.HUB, Place.NOWHERE, Place.MISSING)

    @property
    def form(self) -> str:
        """The format of its weights, for people."""
        if self.folder is not None and self.folder.endswith((".ckpt", ".safetensors")):
            return "checkpoint file"
        return "checkpoint file" if self.place is Place.NOWHERE else "diffusers folder"

    def as_json(self) -> Json:
        """The `storage` object of a model. Folders of this machine are not told to clients."""
        return {
            "place": self.place.value,
            "format": self.form,
            "on_disk": self.on_disk,
            "size_bytes": self.size_bytes,
            "size_from": self.size_from,
            "download_bytes": self.download_bytes,
        }


def storage_of(entry: ModelEntry, settings: Settings) -> Storage:
    """Look at the disk; reads names and sizes only."""
    own_bytes = _own_bytes(entry)
    computed = _computed_bytes(entry, settings)
    source = None if computed is None else "configuration"
    if entry.is_builtin:
        return Storage(Place.BUILT_IN, computed, source, 0)
    try:
        files = local_files(entry, settings)
        if files is not None:
            return Storage(Place.FOLDER, _bytes_of(files) + own_bytes, "disk", 0, str(files))
    except (OSError, ModelUnavailable):  # `checks` reports the fault
        return Storage(Place.NOWHERE, computed, source, None)
    if entry.resolution is not None:
        return Storage(Place.NOWHERE, computed, source, None)
    if not has_hub_id(entry):
        return Storage(Place.MISSING, computed, source, None)
    stored = stored_snapshot(entry)
    if stored is not None:
        return Storage(Place.HUB_CACHE, stored.total_bytes + own_bytes, "disk", 0, str(stored.folder))
    told = known_size(settings, entry)
    if told is None:
        return Storage(Place.HUB, computed, source, _computed_bytes(entry, settings, without=entry.parts))
    return Storage(Place.HUB, told + own_bytes, "hub", missing_bytes(entry, settings))


def missing_bytes(entry: ModelEntry, settings: Settings) -> int | None:
    """Bytes that a download would bring now; None if the hub was never asked."""
    told = known_size(settings, entry)
    return None if told is None else told - _stored_bytes(entry, settings)


def _computed_bytes(entry: ModelEntry, settings: Settings, without: Collection[str] = ()) -> int | None:
    requirements = profiles.load_requirements(settings, entry)
    if requirements is None:
        return None
    return sum(each.weight_bytes for each in requirements.components if each.name not in without)


def _stored_bytes(entry: ModelEntry, settings: Settings) -> int:
    """Bytes in the cache of the files that the hub last named for the model, whatever brought them."""
    repository = repository_folder(entry.source)
    blobs = known_blobs(settings, entry)
    return sum(HubFile(blob, size, blob).stored_bytes(repository) for blob, size in blobs)


def _own_bytes(entry: ModelEntry) -> int:
    try:
        return sum(map(_bytes_of, part_paths(entry).values()))
    except OSError:  # `checks` reports the missing file
        return 0


def _bytes_of(path: Path) -> int:
    files = [each for each in path.rglob("*") if each.is_file()] if path.is_dir() else [path]
    return sum(each.stat().st_size for each in files)
