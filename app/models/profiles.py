"""Where the memory profiles of the configured models are kept: one JSON file a model in the data folder.

The file's name holds a digest of all that a profile depends on: a changed model, dtype or version asks
for a new file instead of trusting an old one. Profiles of models whose configuration is known beforehand come
with Framefit, so that a first start need not wait for them. Importing this imports no torch, so that the API
process plans with it; profiles are made by `app.models.profile_tracer`.
"""

import hashlib
import json
from collections.abc import Mapping
from functools import cache, lru_cache
from importlib.metadata import version
from pathlib import Path

from adaptive.memory.profile import MemoryProfile
from app.config import Settings
from app.models.entries import ModelEntry
from app.models.requirements import ModelRequirements

_LIBRARIES = ("torch", "diffusers")
_SHIPPED = Path(__file__).parents[1] / "pipelines" / "published" / "profiles"


def profile_path(settings: Settings, entry: ModelEntry) -> Path:
    """File of the model's profile, whether it exists or not."""
    parts = [
        entry.source,
        entry.revision,
        entry.vae_class,
        entry.dtype,
        _local_config(entry),
        library_versions(),
    ]
    digest = hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:12]
    return settings.profiles_dir / f"{entry.name}-{digest}.json"


def shipped_path(entry: ModelEntry) -> Path:
    """File of the profile that comes with Framefit for the model's source, whether it exists or not.

    Models that are published as one file each share the VAE of their pipeline, and its profile.
    """
    published = entry.resolution is not None and not Path(entry.source).expanduser().exists()
    name = entry.pipeline if published else entry.source.replace("/", "--").replace(":", "--")
    return _SHIPPED / f"{name}.{entry.dtype}.json"


def load(settings: Settings, entry: ModelEntry) -> MemoryProfile | None:
    """The model's profile; None while it has not been traced yet. Cheap to call for every request."""
    path = profile_path(settings, entry)
    try:
        return _read(path, path.stat().st_mtime_ns)
    except (OSError, ValueError, KeyError, TypeError):  # absent, or not what this version writes: traced anew
        return _shipped(shipped_path(entry), entry.vae_class) if entry.revision is None else None


def save(settings: Settings, entry: ModelEntry, profile: MemoryProfile) -> None:
    """Keep the model's profile; atomic."""
    path = profile_path(settings, entry)
    path.parent.mkdir(parents=True, exist_ok=True)
    profile.save(path)


def load_requirements(settings: Settings, entry: ModelEntry) -> ModelRequirements | None:
    """What the model demands of a device; None while it has not been traced yet."""
    path = _requirements_path(settings, entry)
    try:
        return _read_requirements(path, path.stat().st_mtime_ns)
    except (OSError, ValueError, KeyError, TypeError):
        return _shipped_requirements(shipped_path(entry)) if entry.revision is None else None


def save_requirements(settings: Settings, entry: ModelEntry, requirements: ModelRequirements) -> None:
    """Keep what the model demands; atomic."""
    path = _requirements_path(settings, entry)
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(path.name + ".new")
    draft.write_text(json.dumps(requirements.to_json()), encoding="utf-8")
    draft.replace(path)


def _requirements_path(settings: Settings, entry: ModelEntry) -> Path:
    return profile_path(settings, entry).with_suffix(".requirements.json")


@cache
def library_versions() -> Mapping[str, str]:
    """Versions that a trace depends on, without the part that names a build."""
    return {library: version(library).partition("+")[0] for library in _LIBRARIES}


@lru_cache(maxsize=64)
def _read(path: Path, _modified_ns: int) -> MemoryProfile:
    return MemoryProfile.load(path)


@lru_cache(maxsize=64)
def _read_requirements(path: Path, _modified_ns: int) -> ModelRequirements:
    return ModelRequirements.from_json(json.loads(path.read_text(encoding="utf-8")))


@cache
def _shipped_requirements(path: Path) -> ModelRequirements | None:
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        requirements = ModelRequirements.from_json(document["demand"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return requirements if document["versions"] == library_versions() else None


@cache
def _shipped(path: Path, vae_class: str) -> MemoryProfile | None:
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        profile = MemoryProfile.from_json(document["profile"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
    fits = document["versions"] == library_versions() and profile.traits.vae_class == vae_class
    return profile if fits else None


def _local_config(entry: ModelEntry) -> str | None:
    path = Path(entry.source).expanduser() / "vae" / "config.json"
    return path.read_text(encoding="utf-8") if path.is_file() else None
