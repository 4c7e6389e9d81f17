"""What the hub last said about a model: its size, or why it gives no access. A small file in the data folder.

Lets processes that must not ask the hub tell what a download would cost, and refuse a job that would fail. A
refusal counts for `REFUSED_SECONDS`, with the same token and the same hub: after that, a job tries again.
"""

import hashlib
import json
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from app.artifacts.whole_file import replace_text
from app.config import Settings
from app.models import profiles
from app.models.entries import ModelEntry

REFUSED_SECONDS = 60.0
_VARIABLES = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_ENDPOINT", "HF_HUB_OFFLINE")

# The files of a model: for each its name in the cache, which files of one content share, and its bytes.
Blobs = Sequence[tuple[str, int]]


def record_size(settings: Settings, entry: ModelEntry, total_bytes: int, blobs: Blobs) -> None:
    """Keep the model's size at the hub; a refusal before that counts no longer.

    `blobs`: its files, see `Blobs`.
    """
    _write(settings, entry, {"total_bytes": total_bytes, "blobs": list(blobs)})


def record_refusal(settings: Settings, entry: ModelEntry, reason: str) -> None:
    """Keep why the hub gives no access."""
    refusal = {"reason": reason, "at": time.time(), "access": _access()}
    _write(settings, entry, {**_read(settings, entry), "refusal": refusal})


def known_size(settings: Settings, entry: ModelEntry) -> int | None:
    """Bytes of the model's files at the hub; None if it was never asked."""
    found = _read(settings, entry).get("total_bytes")
    return found if isinstance(found, int) else None


def known_blobs(settings: Settings, entry: ModelEntry) -> Blobs:
    """The model's files at the hub; empty if it was never asked."""
    found = _read(settings, entry).get("blobs")
    return [(blob, size) for blob, size in found] if isinstance(found, list) else []


def known_refusal(settings: Settings, entry: ModelEntry) -> str | None:
    """Why the hub gave no access to the model a moment ago; None if it did, or was not asked."""
    try:
        refusal = _read(settings, entry)["refusal"]
        is_recent = abs(time.time() - refusal["at"]) < REFUSED_SECONDS
        return str(refusal["reason"]) if is_recent and refusal["access"] == _access() else None
    except (KeyError, TypeError):
        return None


def _access() -> str:
    """A digest that changes with the hub and the token; the token itself is not kept."""
    parts: list[object] = [os.environ.get(name, "") for name in _VARIABLES]
    try:
        parts.append(Path(os.environ.get("HF_TOKEN_PATH", "")).stat().st_mtime_ns)
    except OSError:
        parts.append(None)
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]


def _path(settings: Settings, entry: ModelEntry) -> Path:
    key = [entry.source, entry.revision, entry.variant, *sorted(entry.parts)]
    name = hashlib.sha256(json.dumps(key).encode()).hexdigest()[:12]
    return settings.profiles_dir / f"{entry.name}-{name}.hub.json"


def _read(settings: Settings, entry: ModelEntry) -> dict[str, Any]:
    try:
        found = json.loads(_path(settings, entry).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _write(settings: Settings, entry: ModelEntry, document: dict[str, Any]) -> None:
    path = _path(settings, entry)
    try:
        profiles.make_folder_of(path)
        replace_text(path, json.dumps(document))
    except OSError:  # the data folder is away or full: the hub will be asked again
        return
