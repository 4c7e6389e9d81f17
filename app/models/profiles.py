"""Loads and saves the memory profiles of the configured models: one JSON file a model in the data folder.

The file's name has a digest of everything that a profile depends on, so a changed model, dtype or library
version needs a new file. Profiles of well-known models ship with Framefit, so that the first start need not
trace them. The API process plans with this module, so it must not import torch; `app.models.profile_tracer`
makes the profiles.
"""

import hashlib
import json
from functools import cache, lru_cache
from pathlib import Path

from adaptive.memory import published
from adaptive.memory.profile import MemoryProfile
from adaptive.memory.published import library_versions
from app.artifacts.whole_file import replace_text
from app.config import Settings
from app.models.entries import ModelEntry
from app.models.parts.entry_parts import has_vae_folder, part_signatures
from app.models.requirements import ModelRequirements

_SHIPPED = Path(__file__).parents[1] / "pipelines" / "published" / "profiles"


def profile_path(settings: Settings, entry: ModelEntry) -> Path:
    """The file of the model's profile, which need not exist."""
    parts = [
        entry.source,
        entry.revision,
        entry.vae_class,
        entry.dtype,
        _local_config(entry),
        library_versions(),
    ]
    if _mixed(entry):
        parts.append(entry.decode_dtype)
    if has_vae_folder(entry):
        parts.append(f"vae {part_signatures(entry)['vae']}")
    digest = hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:12]
    return settings.profiles_dir / f"{entry.name}-{digest}.json"


def failure_path(settings: Settings, entry: ModelEntry) -> Path:
    """The file that says why the model could not be traced, which need not exist."""
    return profile_path(settings, entry).with_suffix(".failure.json")


def shipped_path(entry: ModelEntry) -> Path:
    """The shipped file for the model's source, which need not exist: its requirements, and the name of its
    VAE's profile in `adaptive.memory.published`.

    Models that are published as single files share their pipeline's VAE, and so one profile.
    """
    published = entry.resolution is not None and not Path(entry.source).expanduser().exists()
    name = entry.pipeline if published else entry.source.replace("/", "--").replace(":", "--")
    return _SHIPPED / f"{name}.{entry.dtype}.json"


def make_folder_of(path: Path) -> None:
    """Make a file's folder in the data folder.

    The data folder itself is not made: one that was removed while the service runs must not come back without
    its database. Raises `OSError`.
    """
    path.parent.mkdir(exist_ok=True)


def load(settings: Settings, entry: ModelEntry) -> MemoryProfile | None:
    """The model's profile; None while it has not been traced yet. Cheap to call for every request."""
    path = profile_path(settings, entry)
    try:
        return _read(path, path.stat().st_mtime_ns)
    except (OSError, ValueError, KeyError, TypeError):  # missing, or written by another version
        return _shipped(shipped_path(entry), entry.vae_class) if _is_as_shipped(entry) else None


def save(settings: Settings, entry: ModelEntry, profile: MemoryProfile) -> None:
    """Save the model's profile; the file is replaced atomically."""
    path = profile_path(settings, entry)
    make_folder_of(path)
    profile.save(path)


def load_requirements(settings: Settings, entry: ModelEntry) -> ModelRequirements | None:
    """The model's requirements; None while they have not been traced yet."""
    path = _requirements_path(settings, entry)
    try:
        return _read_requirements(path, path.stat().st_mtime_ns)
    except (OSError, ValueError, KeyError, TypeError):
        as_shipped = _is_as_shipped(entry) and not entry.parts and entry.text_encoder_dtype is None
        return _shipped_requirements(shipped_path(entry)) if as_shipped else None


def save_requirements(settings: Settings, entry: ModelEntry, requirements: ModelRequirements) -> None:
    """Save the model's requirements; the file is replaced atomically."""
    path = _requirements_path(settings, entry)
    make_folder_of(path)
    replace_text(path, json.dumps(requirements.to_json()))


def _mixed(entry: ModelEntry) -> bool:
    return entry.decode_dtype != entry.dtype


def _is_as_shipped(entry: ModelEntry) -> bool:
    """Whether the VAE is that of the shipped profile. A VAE in a file has the base's configuration."""
    return entry.revision is None and not _mixed(entry) and not has_vae_folder(entry)


def _requirements_path(settings: Settings, entry: ModelEntry) -> Path:
    path = profile_path(settings, entry)
    others = [f"{name} {signature}" for name, signature in part_signatures(entry).items()]
    if entry.text_encoder_dtype not in (None, entry.dtype):
        others.append(f"text {entry.text_encoder_dtype}")
    if others:  # they change the sizes, and not the VAE's profile
        path = path.with_name(
            f"{path.stem}-{hashlib.sha256(json.dumps(others).encode()).hexdigest()[:12]}.json"
        )
    # Existing data folders hold files with this suffix.
    return path.with_suffix(".demand.json")


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
        profile = published.load(document["vae"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return profile if profile is not None and profile.traits.vae_class == vae_class else None


def _local_config(entry: ModelEntry) -> str | None:
    """The configuration of a VAE on this machine; None also for one that cannot be read now."""
    path = Path(entry.source).expanduser() / "vae" / "config.json"
    try:
        return path.read_text(encoding="utf-8", errors="replace") if path.is_file() else None
    except OSError:
        return None
