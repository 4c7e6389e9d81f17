"""Memory profiles of published VAEs, traced before release: one JSON file beside this module for each
configuration and dtype.

A first decode then need not trace anything. Owns the files' names and when a file counts: a trace depends on
the versions of torch and diffusers that made it. Imports no torch.
"""

import json
from collections.abc import Mapping
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from adaptive.memory.profile import MemoryProfile

_LIBRARIES = ("torch", "diffusers")
FOLDER = Path(__file__).parent


@cache
def library_versions() -> Mapping[str, str]:
    """Versions of the libraries that a trace depends on, without local build suffixes."""
    return {library: version(library).partition("+")[0] for library in _LIBRARIES}


def name_of(vae_class: str, config_digest: str, dtype: str) -> str:
    """Name of the profile of a VAE class, the digest of its complete configuration, and a dtype."""
    return f"{vae_class}.{config_digest}.{dtype}"


def save(name: str, profile: MemoryProfile) -> Path:
    """Write the file of a name; for maintainers, before a release."""
    path = FOLDER / f"{name}.json"
    document = {"versions": library_versions(), "profile": profile.to_json()}
    path.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    return path


@cache
def load(name: str) -> MemoryProfile | None:
    """The profile of a name; None where there is none, or one of other versions of torch or diffusers."""
    try:
        document = json.loads((FOLDER / f"{name}.json").read_text(encoding="utf-8"))
        profile = MemoryProfile.from_json(document["profile"])
        return profile if document["versions"] == library_versions() else None
    except (OSError, ValueError, KeyError, TypeError, PackageNotFoundError):
        return None
