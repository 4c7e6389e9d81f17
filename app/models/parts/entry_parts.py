"""The parts of an entry: opened, and checked against the components that its base has. Without torch."""

import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from app.models.entries import ModelEntry
from app.models.parts.part import Part, open_part
from app.models.unavailable import ModelUnavailable


def part_paths(entry: ModelEntry) -> dict[str, Path]:
    """The file or folder of each component that the entry names."""
    return {name: Path(given).expanduser() for name, given in entry.parts.items()}


def has_vae_folder(entry: ModelEntry) -> bool:
    """Whether the entry's own VAE is a folder, which has a configuration of its own."""
    try:
        return entry.vae is not None and part_paths(entry)["vae"].is_dir()
    except OSError:  # its fault is found when it is opened
        return False


def part_signatures(entry: ModelEntry) -> dict[str, str]:
    """For each component that the entry names, a text that changes when its file or files do."""
    return {name: _signature(path) for name, path in part_paths(entry).items()}


def _signature(path: Path) -> str:
    try:
        if path.is_dir():
            return json.dumps(
                [(each.name, _signature(each)) for each in sorted(path.iterdir()) if each.is_file()]
            )
        stat = path.stat()
    except OSError as error:
        return str(error)
    return f"{path} {stat.st_size} {stat.st_mtime_ns}"


def parts_of(entry: ModelEntry, names: Collection[str] | None = None) -> dict[str, Part]:
    """The entry's parts by component, headers read; only `names` if given.

    Raises `ModelUnavailable` for the first that is wrong.
    """
    return {
        name: open_part(name, path, entry.dtype_of(name))
        for name, path in part_paths(entry).items()
        if names is None or name in names
    }


def denoiser_labels(entry: ModelEntry) -> list[str]:
    """The formats of the entry's own transformers; none for a file that cannot be read."""
    try:
        return [part.label for part in parts_of(entry, ("transformer", "transformer_2")).values()]
    except ModelUnavailable:
        return []


def check_names(entry: ModelEntry, components: Mapping[str, Any]) -> None:
    """Raise `ModelUnavailable` if the entry names a component that the base does not have."""
    for name in entry.parts:
        if name not in components:
            known = ", ".join(sorted(components))
            raise ModelUnavailable(
                f"its entry names a {name}, which its base {entry.source} does not have (it has {known})"
            )


def folder_config(part: Part, class_name: str) -> dict[str, Any]:
    """The configuration of a part that is a folder. Raises `ModelUnavailable` if it is of another class."""
    path = part.path / "config.json"
    try:
        config: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        found = config.get("_class_name") or (config.get("architectures") or [class_name])[0]
    except (OSError, ValueError, AttributeError, LookupError) as error:
        raise ModelUnavailable(f"its {part.name} {path}: {error}") from None
    quantized = config.get("quantization_config")
    if quantized is not None:
        method = quantized.get("quant_method", "unknown") if isinstance(quantized, dict) else "unknown"
        raise ModelUnavailable(
            f"its {part.name} {part.path} is quantized ({method}), which is not loaded from a folder: "
            "use fp8 or GGUF, or a folder in bf16"
        )
    if found != class_name:
        raise ModelUnavailable(f"its {part.name} {part.path} holds a {found}; its base needs a {class_name}")
    return config
