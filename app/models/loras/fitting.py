"""Whether a model takes a LoRA: compares the layers that it changes with those of the model's transformers.

A model's layers are known from files on this machine, or by the published model that its source is. Where
neither tells, the worker finds out when it applies the LoRA. Must not know jobs.
"""

from collections.abc import Iterator, Mapping
from functools import lru_cache
from pathlib import Path

from app.config import Settings
from app.models.components import base_on_this_machine
from app.models.entries import ModelEntry
from app.models.files.architectures.adapters import flat
from app.models.files.architectures.number_format import weights_of
from app.models.files.architectures.recognition import PREFIXES, recognise
from app.models.files.architectures.table import ARCHITECTURES
from app.models.files.header import read_header
from app.models.files.stored import DamagedFile, StoredTensor, WeightsHeader
from app.models.loras.folder import LoraFile
from app.models.requirements import TRANSFORMERS

_LEAST_SHARE = 0.9

Layers = Mapping[str, tuple[int, ...]]


def takes(lora: LoraFile, entry: ModelEntry, settings: Settings) -> bool | None:
    """Whether the model takes the LoRA; None if only the worker can tell."""
    wanted = {architecture.keys for architecture in lora.adapter.targets}
    known: set[str] = {architecture.keys for architecture in ARCHITECTURES if _is_source(entry, architecture)}
    own = list(_transformers(entry, settings))
    for layers, architectures in own:
        if sum(layers.get(name) == shape for name, shape in lora.layers.items()) >= _LEAST_SHARE * len(
            lora.layers
        ):
            return True
        known |= architectures
    if known & wanted:
        return True
    return False if wanted and (known or own) else None


def models_that_take(lora: LoraFile, models: Mapping[str, ModelEntry], settings: Settings) -> list[str]:
    """The names of the models that are known to take the LoRA."""
    return [name for name, entry in models.items() if takes(lora, entry, settings)]


def transformers_of(entry: ModelEntry, settings: Settings) -> tuple[str, ...] | None:
    """The names of the model's transformers; () if it has none, None if only the hub knows."""
    if entry.is_builtin:
        return TRANSFORMERS[:1]
    components = base_on_this_machine(entry, settings)
    return None if components is None else tuple(name for name in TRANSFORMERS if name in components)


def _is_source(entry: ModelEntry, architecture: object) -> bool:
    models = getattr(architecture, "models", ())
    return entry.transformer is None and any(model.base == entry.source for model in models)


def _transformers(entry: ModelEntry, settings: Settings) -> Iterator[tuple[Layers, frozenset[str]]]:
    """What `_described` says of each of the model's transformers whose files are on this machine."""
    for name in TRANSFORMERS:
        named = getattr(entry, name)
        path = Path(named).expanduser() if named else _folder(entry, settings) / name
        try:
            files = [path] if path.is_file() else sorted(path.glob("*.safetensors"))
            stamps = [(file, file.stat()) for file in files]
            if stamps:
                yield _described(tuple((file, each.st_size, each.st_mtime_ns) for file, each in stamps))
        except (OSError, DamagedFile):  # told where the model is checked
            continue


@lru_cache(maxsize=64)
def _described(files: tuple[tuple[Path, int, int], ...]) -> tuple[Layers, frozenset[str]]:
    """The shapes of a transformer's weights by flat name, and the published architectures that it is."""
    header = read_header(files[0][0]) if len(files) == 1 else _joined([file for file, _, _ in files])
    shapes = {}
    for name, weight in weights_of(header).items():
        prefix = next((each for each in PREFIXES if name.startswith(each)), "")
        for short in {name, name.removeprefix(prefix)}:
            shapes[flat(short.removesuffix(".weight"))] = tuple(weight.shape)
    parts = (part.architecture for part in recognise(header) if part.fits)
    return shapes, frozenset(each.keys for each in parts if each is not None)


def _joined(files: list[Path]) -> WeightsHeader:
    tensors: dict[str, StoredTensor] = {}
    for file in files:
        tensors |= read_header(file).tensors
    return WeightsHeader("safetensors", tensors, {})


def _folder(entry: ModelEntry, settings: Settings) -> Path:
    if entry.is_builtin:
        return settings.models_dir / entry.source.removeprefix("builtin:")
    return Path(entry.source).expanduser()
