"""Where a model's weights are and how many bytes they have, as cards and tables show it.

Asks no hub: what is not on this machine has the size that the hub last told, or else the one that follows
from its configuration.
"""

from dataclasses import dataclass
from enum import StrEnum

from app.config import Settings
from app.jobs import Json
from app.models import profiles
from app.models.components import ModelUnavailable, local_files
from app.models.downloads.cached import partial_bytes, stored_snapshot
from app.models.downloads.known import known_size
from app.models.entries import ModelEntry


class Place(StrEnum):
    """Where a model's weights are."""

    BUILT_IN = "built_in"
    FOLDER = "folder"  # that the entry names, or in the data folder
    HUB_CACHE = "hub_cache"
    HUB = "hub"  # not on this machine, or only in part
    NOWHERE = "nowhere"  # to be brought by hand


@dataclass(frozen=True, slots=True)
class Storage:
    """A model's weights on this machine. `size_bytes` is None if nothing tells it.

    `size_from`: disk, hub (as it last told) or configuration (weights alone, in the entry's dtype).
    `download_bytes`: what a download would bring now; 0 if all is here, None if unknown.
    """

    place: Place
    size_bytes: int | None
    size_from: str | None
    download_bytes: int | None
    folder: str | None = None

    @property
    def on_disk(self) -> bool:
        """Whether the model can be loaded without a download."""
        return self.place not in (Place.HUB, Place.NOWHERE)

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
    computed = _computed_bytes(entry, settings)
    source = None if computed is None else "configuration"
    if entry.is_builtin:
        return Storage(Place.BUILT_IN, computed, source, 0)
    try:
        files = local_files(entry, settings)
        if files is not None:
            parts = [files] if files.is_file() else [each for each in files.rglob("*") if each.is_file()]
            stored_bytes = sum(each.stat().st_size for each in parts)
            return Storage(Place.FOLDER, stored_bytes, "disk", 0, str(files))
    except (OSError, ModelUnavailable):  # the model's fault is told elsewhere
        return Storage(Place.NOWHERE, computed, source, None)
    if entry.resolution is not None:
        return Storage(Place.NOWHERE, computed, source, None)
    stored = stored_snapshot(entry)
    if stored is not None:
        return Storage(Place.HUB_CACHE, stored.total_bytes, "disk", 0, str(stored.folder))
    told = known_size(settings, entry)
    size, source = (computed, source) if told is None else (told, "hub")
    missing = None if size is None else max(0, size - partial_bytes(entry.source))
    return Storage(Place.HUB, size, source, missing)


def _computed_bytes(entry: ModelEntry, settings: Settings) -> int | None:
    requirements = profiles.load_requirements(settings, entry)
    return None if requirements is None else sum(each.weight_bytes for each in requirements.components)
