"""Checks a model's folder in diffusers' format: index, components, configurations, files of weights.

Reads JSON and the headers of safetensors files, no weights. What it finds is permanent: only another file, or
another entry, changes it. It must not know when it is called or who is told.
"""

import ast
import importlib.util
import json
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

from app.config import Settings
from app.models.checks.pipelines import check_pipeline
from app.models.components import (
    OWN_PIPELINES,
    ModelUnavailable,
    base_on_this_machine,
    has_weights,
    local_files,
    require_hub_id,
)
from app.models.entries import ModelEntry
from app.models.files.header import LFS_POINTER, pointer_text, read_header
from app.models.files.stored import DamagedFile, StoredTensor
from app.models.parts.entry_parts import check_names, folder_config, part_paths, parts_of

INDEX = "model_index.json"
_STEMS = {"diffusers": ("diffusion_pytorch_model",), "transformers": ("model", "pytorch_model")}
_ANY_STEM = tuple(stem for stems in _STEMS.values() for stem in stems)
_POINTER_BYTES = 1024  # pointers are smaller
_MOST_FILES = 2000


def check_model(entry: ModelEntry, settings: Settings) -> None:
    """Raise `ModelUnavailable` if the model's files on this machine, or its entry, cannot be right.

    So it does for a pipeline that needs an input or a package that is not there.

    A model that is still to be downloaded or converted passes. The error is `transient` if a file could not
    be read for a reason that may pass.
    """
    _require_class(entry.pipeline, "its pipeline")
    check_pipeline(entry)
    try:
        files = source_of(entry, settings)
        if files is not None and files.is_file():
            _check_file(entry, files)
        elif files is not None:
            _check_folder(entry, files)
        if entry.parts:
            _check_parts(entry, settings)
    except (PermissionError, FileNotFoundError, NotADirectoryError) as error:
        raise ModelUnavailable(f"{error.filename}: {error.strerror}") from None
    except OSError as error:
        raise ModelUnavailable(f"its files cannot be read now: {error}", transient=True) from None


def _check_parts(entry: ModelEntry, settings: Settings) -> None:
    """Check the files that the entry names for components, as far as headers and the base's classes show."""
    parts = parts_of(entry)
    components = base_on_this_machine(entry, settings)
    if components is None:
        return
    check_names(entry, components)
    for name, part in parts.items():
        if part.header is None:
            library, class_name = components[name].library, components[name].class_name
            folder_config(part, class_name)
            _check_component(part.path.parent, part.path.name, library, class_name, None)


def source_of(entry: ModelEntry, settings: Settings) -> Path | None:
    """The model's folder or file on this machine; None for a built-in model, or one that is not here.

    Raises `ModelUnavailable` if the entry's source can be neither a path that exists nor a hub id.
    """
    if entry.is_builtin:
        name = entry.source.removeprefix("builtin:")
        if not name.isidentifier() or importlib.util.find_spec(f"app.pipelines.{name}") is None:
            raise ModelUnavailable(
                f"no built-in model is called {name!r}; use builtin:photo_pan or builtin:tiny"
            )
        return None
    files = local_files(entry, settings)
    if files is None:
        require_hub_id(entry)
    return files


def signature_of(entry: ModelEntry, settings: Settings) -> str:
    """A text that changes when a file of the model changes: names, sizes and times."""
    try:
        files = source_of(entry, settings)
        if files is None and not entry.parts:
            return ""
        found = [path for path in part_paths(entry).values() if path.is_file()]
        for path in part_paths(entry).values():
            found += _files_of(path) if path.is_dir() else []
        if files is not None:
            found += [files] if files.is_file() else list(_files_of(files))
        stats = [(str(path), path.stat()) for path in found[:_MOST_FILES]]
    except (OSError, ModelUnavailable) as error:
        return str(error)
    return json.dumps([(name, stat.st_size, stat.st_mtime_ns, stat.st_ino) for name, stat in stats])


def _files_of(folder: Path) -> Iterator[Path]:
    """The folder's own files, and those of its subfolders if it is a model: the source may be any folder."""
    is_model = (folder / INDEX).is_file()
    for path in sorted(folder.iterdir()):
        if path.is_file():
            yield path
        elif path.is_dir() and is_model:
            yield from (each for each in sorted(path.iterdir()) if each.is_file())


def _check_file(entry: ModelEntry, path: Path) -> None:
    if entry.resolution is None:
        if entry.pipeline in OWN_PIPELINES:
            what = "add its resolution (256, 512 or 1024) to its entry"
        else:
            what = f"{entry.pipeline} is loaded from a folder in diffusers' format: name the one with {INDEX}"
        raise ModelUnavailable(f"its source is the file {path.name}: {what}")
    if path.suffix == ".safetensors":
        _header(path, path.name)


def _check_folder(entry: ModelEntry, folder: Path) -> None:
    if not (folder / INDEX).exists():
        raise ModelUnavailable(f"its folder has no {INDEX}{_hint(folder)}")
    index = _json(folder, INDEX)
    parts = {name: value for name, value in index.items() if isinstance(value, list) and len(value) == 2}
    parts = {name: value for name, value in parts.items() if all(isinstance(each, str) for each in value)}
    if "vae" not in parts:
        what = index.get("_class_name", "an unknown pipeline")
        raise ModelUnavailable(f"its folder holds another model: {what} has no vae in {INDEX}")
    found = parts["vae"][1]
    if found != entry.vae_class:
        what = f"{INDEX} names the VAE {found}, the entry {entry.vae_class}"
        raise ModelUnavailable(f"its folder holds another model: {what}")
    for name, (library, class_name) in parts.items():
        if library == "diffusers":
            _require_class(class_name, f"{name} of {INDEX}")
        if name in entry.parts:
            continue
        _check_component(folder, name, library, class_name, entry.variant)


def _hint(folder: Path) -> str:
    """What the folder seems to be instead, and what to do."""
    inner = [path.name for path in sorted(folder.iterdir()) if (path / INDEX).is_file()]
    if inner:
        return f": name its folder {inner[0]} instead"
    single = [
        path.name for path in sorted(folder.iterdir()) if path.suffix in (".safetensors", ".ckpt", ".gguf")
    ]
    if single:
        return f" but the file {single[0]}: get the model's folder in diffusers' format"
    return ": it is no model in diffusers' format"


def _check_component(folder: Path, name: str, library: str, class_name: str, variant: str | None) -> None:
    part = folder / name
    if not part.is_dir():
        raise ModelUnavailable(f"its folder {name}/ is missing: get it again")
    for path in sorted(part.iterdir()):
        if path.is_file() and (size := path.stat().st_size) < _POINTER_BYTES and _is_pointer(path):
            raise ModelUnavailable(f"{name}/{path.name} {pointer_text(size)}")
    if not has_weights(library, class_name):
        return
    _json(folder, f"{name}/config.json")
    weights = _weights(part, _STEMS.get(library, _ANY_STEM), variant)
    if weights is None:
        stem = _STEMS.get(library, _ANY_STEM)[0]
        raise ModelUnavailable(f"the weights of {name} are missing: {name}/{stem}.safetensors does not exist")
    if weights.name.endswith(".json"):
        _check_shards(folder, name, weights.name)
    elif weights.suffix == ".safetensors":
        _header(weights, f"{name}/{weights.name}")
    elif weights.stat().st_size == 0:
        raise ModelUnavailable(f"{name}/{weights.name} is empty: get it again")


def _weights(part: Path, stems: Iterable[str], variant: str | None) -> Path | None:
    """The file of weights, or the index of several, that the loader takes."""
    for form in (variant, None) if variant else (None,):
        dotted = f".{form}" if form else ""
        for stem in stems:
            for ending in ("safetensors", "bin"):
                names = [f"{stem}.{ending}.index{dotted}.json", f"{stem}{dotted}.{ending}"]
                if stem != "diffusion_pytorch_model":  # transformers looks for the single file first
                    names.reverse()
                for name in names:
                    if (part / name).is_file():
                        return part / name
    return None


def _check_shards(folder: Path, name: str, index_name: str) -> None:
    """Check the files that an index lists: all there, with the tensors and the bytes that it names."""
    index = _json(folder, f"{name}/{index_name}")
    places = index.get("weight_map")
    if not isinstance(places, dict) or not all(isinstance(each, str) for each in places.values()):
        raise ModelUnavailable(f"{name}/{index_name} has no weight_map: get it again")
    tensors: dict[str, StoredTensor] = {}
    for shard in sorted(set(places.values())):
        if not (folder / name / shard).is_file():
            raise ModelUnavailable(f"{name}/{shard} is missing: {index_name} lists it")
        if not shard.endswith(".safetensors"):
            return
        held = _header(folder / name / shard, f"{name}/{shard}")
        lost = next((each for each, place in places.items() if place == shard and each not in held), None)
        if lost is not None:
            raise ModelUnavailable(
                f"{name}/{shard} has no tensor {lost}, which {index_name} lists: get it again"
            )
        tensors |= held
    metadata = index.get("metadata") or {}
    if not isinstance(metadata, dict):
        raise ModelUnavailable(
            f"{name}/{index_name} is damaged (its metadata is no JSON object): get it again"
        )
    _check_total(tensors, metadata.get("total_size"), f"{name}/{index_name}")


def _check_total(tensors: dict[str, StoredTensor], wanted: Any, subject: str) -> None:
    """Compare bytes with the index. Indexes may count another dtype's width, or one tensor twice."""
    if not isinstance(wanted, int | float) or isinstance(wanted, bool):
        return
    sizes = [each.size_bytes for each in tensors.values()]
    elements = sum(each.elements for each in tensors.values())
    if (
        wanted <= sum(sizes)
        or wanted - sum(sizes) in sizes
        or wanted in [elements * width for width in (1, 2, 4, 8)]
    ):
        return
    raise ModelUnavailable(f"{subject} lists {wanted:,} bytes, its files have {sum(sizes):,}: get them again")


def _header(path: Path, shown: str) -> dict[str, StoredTensor]:
    try:
        return dict(read_header(path).tensors)
    except DamagedFile as error:
        raise ModelUnavailable(f"{shown} {error}") from None


def _is_pointer(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(len(LFS_POINTER)) == LFS_POINTER


def _json(folder: Path, name: str) -> dict[str, Any]:
    try:
        content = json.loads((folder / name).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ModelUnavailable(f"{name} is missing: get it again") from None
    except (ValueError, RecursionError) as error:
        raise ModelUnavailable(f"{name} is damaged ({error}): get it again") from None
    if not isinstance(content, dict):
        raise ModelUnavailable(f"{name} is damaged (it holds no JSON object): get it again")
    return content


def _require_class(class_name: str, subject: str) -> None:
    if class_name not in OWN_PIPELINES and class_name not in diffusers_classes():
        raise ModelUnavailable(f"{subject}: diffusers has no class {class_name!r}")


@cache
def diffusers_classes() -> frozenset[str]:
    """Names in the text of diffusers' main file, which lists every class: importing it would import torch."""
    found = importlib.util.find_spec("diffusers")
    assert found is not None
    assert found.origin is not None
    tree = ast.parse(Path(found.origin).read_text(encoding="utf-8"))
    return frozenset(
        node.value
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    )
