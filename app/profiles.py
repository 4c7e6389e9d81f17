"""Where the memory profiles of the configured models are kept: one JSON file a model in the data folder.

The file's name holds a digest of all that a profile depends on: a changed model, dtype or library version
asks for a new file instead of trusting an old one. Importing this imports no torch, so that the API process
plans with it; profiles are made by `app.profiler`.
"""

import hashlib
import json
from functools import cache, lru_cache
from importlib.metadata import version
from pathlib import Path

from adaptive.memory import MemoryProfile
from app.config import ModelEntry, Settings

_LIBRARIES = ("torch", "diffusers")


def profile_path(settings: Settings, entry: ModelEntry) -> Path:
    """File of the model's profile, whether it exists or not."""
    parts = [entry.source, entry.revision, entry.vae_class, entry.dtype, _local_config(entry), _versions()]
    digest = hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:12]
    return settings.profiles_dir / f"{entry.name}-{digest}.json"


def load(settings: Settings, entry: ModelEntry) -> MemoryProfile | None:
    """The model's profile; None while it has not been traced yet. Cheap to call for every request."""
    path = profile_path(settings, entry)
    try:
        return _read(path, path.stat().st_mtime_ns)
    except (OSError, ValueError, KeyError, TypeError):  # absent, or not what this version writes: traced anew
        return None


def save(settings: Settings, entry: ModelEntry, profile: MemoryProfile) -> None:
    """Keep the model's profile; atomic."""
    path = profile_path(settings, entry)
    path.parent.mkdir(parents=True, exist_ok=True)
    profile.save(path)


@lru_cache(maxsize=64)
def _read(path: Path, _modified_ns: int) -> MemoryProfile:
    return MemoryProfile.load(path)


@cache
def _versions() -> list[str]:
    return [version(library) for library in _LIBRARIES]


def _local_config(entry: ModelEntry) -> str | None:
    path = Path(entry.source).expanduser() / "vae" / "config.json"
    return path.read_text(encoding="utf-8") if path.is_file() else None
