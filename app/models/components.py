"""Reads what a model is made of: the classes and configurations of its components.

The source is a built-in model's folder, a local folder, the published configurations that ship with Framefit,
or the configuration files of a hub repository. Reads no weights: sizes follow from the configurations on meta
tensors. Importing this module imports neither torch nor diffusers.
"""

import importlib
import json
import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any, TypeGuard

from app.config import Settings
from app.models.entries import ModelEntry
from app.models.hub import explain_hub_error, may_pass
from app.models.parts.entry_parts import check_names, folder_config, parts_of
from app.models.parts.part import Part
from app.models.unavailable import ModelUnavailable as ModelUnavailable

# Pipelines that diffusers does not have, and their modules.
OWN_PIPELINES = {
    "DynamiCrafterPipeline": "app.pipelines.dynamicrafter",
    "PhotoPanPipeline": "app.pipelines.photo_pan",
}
_HUB_ID = re.compile(r"\w[\w.-]*(/[\w.-]+)?")
CHECKPOINTS = ("model.ckpt", "model.safetensors")
_PUBLISHED = Path(__file__).parents[1] / "pipelines" / "published" / "configurations"

# `model_index.json` lists components that diffusers defines beside a pipeline under the pipeline's folder
# name.
_PIPELINE_MODULES = {"ltx2": "diffusers.pipelines.ltx2"}
_WITHOUT_WEIGHTS = ("Tokenizer", "Scheduler", "Processor", "Extractor", "Guidance")

ANSWER_SECONDS = 5.0  # in which a hub answers that can be reached

ReadJson = Callable[[str], dict[str, Any]]


@dataclass(frozen=True, slots=True)
class Component:
    """One part of a pipeline that has weights. `library` is the module that defines its class.

    `part`: the file that its weights come from, if the model's entry names one.
    """

    library: str
    class_name: str
    config: Mapping[str, Any]
    part: Part | None = None


def components_of(
    entry: ModelEntry, settings: Settings, *, parts: Collection[str] | None = None
) -> dict[str, Component]:
    """The model's components with weights, by their names in the pipeline. Raises `ModelUnavailable`.

    Shipped configurations take precedence over the hub, so that planning works without a download. The
    components that the entry names itself have the base's class and configuration; a folder has its own.
    `parts`: those of them whose files are opened, by default all.
    """
    components = _of_base(entry, settings)
    check_names(entry, components)
    found = parts_of(entry, parts)
    return components | {name: _with_part(components[name], part) for name, part in found.items()}


def _with_part(component: Component, part: Part) -> Component:
    if part.header is None:
        return replace(component, config=folder_config(part, component.class_name), part=part)
    return replace(component, part=part)


def _of_base(entry: ModelEntry, settings: Settings) -> dict[str, Component]:
    known = base_on_this_machine(entry, settings)
    if known is not None:
        return known
    require_hub_id(entry)
    return _from_index(_hub_reader(entry))


def base_on_this_machine(entry: ModelEntry, settings: Settings) -> dict[str, Component] | None:
    """The components of the entry's base, from a folder or shipped; None if only the hub knows them.

    Raises `ModelUnavailable`.
    """
    files = local_files(entry, settings)
    if files is not None and files.is_dir():
        return _from_index(_folder_reader(files))
    if entry.resolution is not None:
        return _of_resolution(entry.pipeline, entry.resolution)
    return _published().get(entry.source) if entry.revision is None else None


def local_files(entry: ModelEntry, settings: Settings) -> Path | None:
    """The model's folder or checkpoint file on this machine; None if neither exists.

    Builds a built-in model that does not exist yet. A model that is published as a single file may also be in
    the data folder under its name: converted, or as the file itself.
    """
    if entry.is_builtin:
        return _built(entry, settings)
    named = Path(entry.source).expanduser()
    if named.exists():
        return named
    if entry.resolution is None:
        return None
    folder = settings.models_dir / entry.name
    if (folder / "model_index.json").is_file():
        return folder
    return next((folder / name for name in CHECKPOINTS if (folder / name).is_file()), None)


def has_hub_id(entry: ModelEntry) -> bool:
    """Whether the entry's source, if it is no path that exists, can be a repository's id at the hub."""
    return _HUB_ID.fullmatch(entry.source) is not None


def require_hub_id(entry: ModelEntry) -> None:
    """Raise `ModelUnavailable` if the entry's source, which is no path that exists, is no hub id either."""
    if not has_hub_id(entry):
        raise ModelUnavailable(
            f"the source of model {entry.name}, {entry.source}, does not exist on this machine: correct it "
            "in the models file"
        )


def required_files(entry: ModelEntry, settings: Settings) -> Path | None:
    """As `local_files`, but raises `ModelUnavailable` if the files are needed and the loader cannot get them.

    None means that diffusers loads the model from the hub.
    """
    files = local_files(entry, settings)
    if files is not None and files.is_file() and entry.resolution is None:
        raise ModelUnavailable(
            f"model {entry.name} is the file {files.name}: add its resolution (256, 512 or 1024) to its entry"
        )
    if files is None and entry.resolution is not None:
        raise ModelUnavailable(
            f"model {entry.name} is not on this machine. Download model.ckpt of {entry.source} from the "
            "Hugging Face hub, put the folder `tokenizer` of any CLIP model (vocab.json, merges.txt) beside "
            f"it, and run: framefit convert model.ckpt --resolution {entry.resolution} "
            f"-o {settings.models_dir / entry.name}"
        )
    if files is None:
        require_hub_id(entry)
    return files


def _built(entry: ModelEntry, settings: Settings) -> Path:
    name = entry.source.removeprefix("builtin:")
    try:
        builder = importlib.import_module(f"app.pipelines.{name}")
    except ModuleNotFoundError:
        raise ModelUnavailable(
            f"no built-in model is called {name!r}; use builtin:photo_pan or builtin:tiny"
        ) from None
    folder: Path = builder.build(settings.models_dir / name)
    return folder


def build_component(component: Component) -> Any:
    """A module of the component's class and configuration, on torch's current default device.

    If its weights come from a file, on the meta device, with the layers and dtypes of the file.
    """
    if component.part is not None and component.part.header is not None:
        assembly = importlib.import_module("app.models.parts.assembly")  # imports torch
        return assembly.described(component.library, component.class_name, component.config, component.part)
    module_class = getattr(importlib.import_module(component.library), component.class_name)
    config = {key: value for key, value in component.config.items() if not key.startswith("_")}
    if component.library == "transformers":
        return module_class(module_class.config_class(**config))
    return module_class.from_config(config)


def _of_resolution(pipeline: str, resolution: int) -> dict[str, Component]:
    """The components of a model that its own pipeline describes by resolution."""
    try:
        parts = importlib.import_module(OWN_PIPELINES[pipeline]).described_components(resolution)
    except (KeyError, ValueError) as error:
        raise ModelUnavailable(
            f"{pipeline} has no model of resolution {resolution}: correct the entry"
        ) from error
    return {name: Component(*part) for name, part in parts.items()}


@cache
def _published() -> Mapping[str, dict[str, Component]]:
    models = {}
    for path in sorted(_PUBLISHED.glob("*.json")):
        document = json.loads(path.read_text(encoding="utf-8"))
        models[document["source"]] = {
            name: Component(part["class"][0], part["class"][1], part["config"])
            for name, part in document["components"].items()
        }
    return models


def _from_index(read: ReadJson) -> dict[str, Component]:
    """The components with weights that `model_index.json` lists, each with its `config.json`."""
    components = {}
    for name, value in read("model_index.json").items():
        if not isinstance(value, list) or not _is_library(value[0]) or _has_no_weights(value[1]):
            continue
        library = _PIPELINE_MODULES.get(value[0], value[0])
        components[name] = Component(library, value[1], read(f"{name}/config.json"))
    return components


def _is_library(name: str | None) -> TypeGuard[str]:
    """Whether components may come from this module. Framefit's own pipelines name each class's module."""
    known = name in ("diffusers", "transformers") or name in _PIPELINE_MODULES
    return known or (name or "").startswith("app.pipelines.")


def has_weights(library: str, class_name: str) -> bool:
    """Whether a component of `model_index.json` has weights that Framefit plans."""
    return _is_library(library) and not _has_no_weights(class_name)


def _has_no_weights(class_name: str) -> bool:
    return any(part in class_name for part in _WITHOUT_WEIGHTS)


def _folder_reader(folder: Path) -> ReadJson:
    def read(name: str) -> dict[str, Any]:
        try:
            content: dict[str, Any] = json.loads((folder / name).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise ModelUnavailable(f"{folder / name}: {error}") from None
        return content

    return read


def _hub_reader(entry: ModelEntry) -> ReadJson:
    from huggingface_hub import HfApi, hf_hub_download, try_to_load_from_cache

    def read(name: str) -> dict[str, Any]:
        try:
            path = try_to_load_from_cache(entry.source, name, revision=entry.revision)
            if not isinstance(path, str):  # what a download has brought is not asked for again
                # `hf_hub_download` alone waits half a minute for a hub that does not answer.
                HfApi().model_info(entry.source, revision=entry.revision, timeout=ANSWER_SECONDS)
                path = hf_hub_download(entry.source, name, revision=entry.revision)
        except Exception as error:  # of the client, of its transport, or of the disk
            reason = explain_hub_error(error, entry.source, entry.revision)
            raise ModelUnavailable(reason, transient=may_pass(error)) from None
        content: dict[str, Any] = json.loads(Path(path).read_text(encoding="utf-8"))
        return content

    return read
