"""Which files of a hub repository a pipeline loads: the choice that diffusers makes, without torch.

Follows `DiffusionPipeline.download` of diffusers 0.42: safetensors before bin if every component has them,
the variant's files where a component has some, and nothing beside the components that `model_index.json`
lists. So the single-file checkpoints that many repositories also hold are not downloaded. A test compares
both. Of components that come from other files, only the configuration is loaded.
"""

import fnmatch
import re
from collections.abc import Collection, Iterable, Mapping
from pathlib import PurePosixPath
from typing import Any

_PREFIXES = "diffusion_pytorch_model|model|weights|pytorch_model"
_ENDINGS = "bin|safetensors|onnx|pb"
_SHARD = r"\d{5}-of-\d{5}"
_WEIGHTS = ("bin", "safetensors", "onnx", "pb", "flashpack")
_PLAIN = re.compile(rf"({_PREFIXES})(-{_SHARD})?\.({_ENDINGS})$")
_PLAIN_INDEX = re.compile(rf"({_PREFIXES})\.({_ENDINGS})\.index\.json")
_SAFE_ONLY = ("*.bin", "*.msgpack", "*.onnx", "*.pb")
_PICKLED = ("*.safetensors", "*.msgpack", "*.onnx", "*.pb")
_ALWAYS = (
    *("scheduler_config.json", "config.json", "model_index.json", "pipeline.py"),
    *("chat_template.jinja", "generation_config.json", "preprocessor_config.json"),
    *("processor_config.json", "tokenizer.json", "tokenizer_config.json"),
)


class NoSuchVariant(ValueError):
    """No component has files of the variant."""


def select_files(
    names: Iterable[str],
    index: Mapping[str, Any],
    variant: str | None,
    parts: Collection[str] = (),
    only: str | None = None,
) -> frozenset[str]:
    """The files of `names`, paths in a repository, that its pipeline loads.

    `index` is the content of `model_index.json`. `parts`: components whose weights come from elsewhere.
    `only`: the one component that is loaded. Raises `NoSuchVariant`.
    """
    chosen = _of_pipeline(names, index, variant)
    if only is not None:
        chosen = frozenset(name for name in chosen if _folder(name) == only or name == "model_index.json")
    elsewhere = {name for name in chosen if _folder(name).split("/")[0] in parts}
    return chosen - {name for name in elsewhere if not name.endswith("/config.json")}


def _of_pipeline(names: Iterable[str], index: Mapping[str, Any], variant: str | None) -> frozenset[str]:
    files = frozenset(names) - frozenset(index.get("_ignore_files") or ())
    folders = {key for key, value in index.items() if isinstance(value, list) and key != "_class_name"}
    weights = [name for name in files if name.endswith(_WEIGHTS)]
    with_weights = {_folder(name) for name in weights} & folders
    is_safe = _has_safetensors(weights, with_weights, variant)
    ignored: tuple[str, ...] = _SAFE_ONLY if is_safe else _PICKLED
    allowed = {
        *_weights_of(files, variant, ignored),
        *(f"{folder}/*" for folder in folders - with_weights),
        *(f"{folder}/config.json" for folder in with_weights),
        *_ALWAYS,
    }
    ignored = (*ignored, *(f"{pattern}.index.*json" for pattern in ignored))
    return frozenset(name for name in files if _any(name, allowed) and not _any(name, ignored))


def _any(name: str, patterns: Iterable[str]) -> bool:
    return any(name == pattern or fnmatch.fnmatchcase(name, pattern) for pattern in patterns)


def _folder(name: str) -> str:
    folder = str(PurePosixPath(name).parent)
    return "" if folder == "." else folder


def _matching(names: Iterable[str], pattern: re.Pattern[str]) -> set[str]:
    return {name for name in names if pattern.match(PurePosixPath(name).name)}


def _of_variant(variant: str) -> re.Pattern[str]:
    named = re.escape(variant)
    return re.compile(rf"({_PREFIXES})\.({named}|{named}-{_SHARD})\.({_ENDINGS})$")


def _has_safetensors(weights: Iterable[str], folders: set[str], variant: str | None) -> bool:
    """Whether each component has a file of safetensors among those that would be loaded."""
    components: dict[str, set[str]] = {}
    for name in weights:
        if _folder(name) in folders:
            components.setdefault(_folder(name), set()).add(name)
    if not components:
        return any(".safetensors" in name for name in _matching(weights, _PLAIN))
    for names in components.values():
        found = _matching(names, _of_variant(variant)) if variant else set()
        if not any(name.endswith(".safetensors") for name in found or _matching(names, _PLAIN)):
            return False
    return True


def _weights_of(files: Iterable[str], variant: str | None, ignored: Iterable[str]) -> set[str]:
    """The weights and their indexes, of the variant where a component has it. Raises `NoSuchVariant`."""
    endings = tuple(pattern.lstrip("*.") for pattern in ignored)
    components: dict[str, set[str]] = {}
    for name in files:
        folder = _folder(name) if name.count("/") == 1 else ""
        components.setdefault(folder, set())
        if not name.endswith(endings):
            components[folder].add(name)
    chosen: set[str] = set()
    found_variant = False
    for names in components.values():
        of_variant = _variant_files(names, variant) if variant else set()
        found_variant |= bool(of_variant)
        chosen |= of_variant or _matching(names, _PLAIN) | _matching(names, _PLAIN_INDEX)
    if variant and not found_variant:
        raise NoSuchVariant(f"there are no files of its variant {variant!r}: correct the entry's variant")
    return chosen


def _variant_files(names: set[str], variant: str) -> set[str]:
    """A component's files of the variant, in the present or in the earlier form of names."""
    named = re.escape(variant)
    present = _matching(names, _of_variant(variant))
    if present:
        index = re.compile(rf"({_PREFIXES})\.({_ENDINGS})\.index\.{named}\.json$")
        return present | _matching(names, index)
    earlier = _matching(names, re.compile(rf".*-{_SHARD}\.{named}\.[a-z]+$"))
    index = re.compile(rf"({_PREFIXES})\.({_ENDINGS})\.{named}\.index\.json$")
    return earlier | _matching(names, index) if earlier else set()
