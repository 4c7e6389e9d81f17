"""One file of weights as its header describes it: its parts, or the reason why nothing can use it."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from app.models.files.architectures.adapters import Adapter, other_adapter, recognise_adapter
from app.models.files.architectures.foreign import foreign_kind
from app.models.files.architectures.key_lists import packed
from app.models.files.architectures.number_format import declared_formats
from app.models.files.architectures.recognition import Differences, Part, recognise
from app.models.files.header import read_header
from app.models.files.sources import ByteSource
from app.models.files.stored import DamagedFile, StoredTensor, WeightsHeader

_SHARD = re.compile(r"-(\d{5})-of-(\d{5})\.(safetensors|gguf)$")
_MOST_NAMED = 6
BYTES_OF_BF16 = 2


@dataclass(frozen=True, slots=True)
class Inspected:
    """A file that could be read. `name` is a path or an address as it was given.

    `parts` are the components it holds, `others` the names before weights that are none. `adapter` is set for
    a LoRA, which has no parts.
    """

    name: str
    header: WeightsHeader
    parts: tuple[Part, ...]
    others: tuple[str, ...] = ()
    adapter: Adapter | None = None


class Unusable(Exception):
    """The file is no component of a model of Framefit. `differences` are those to the nearest, if any."""

    def __init__(self, message: str, part: Part | None = None) -> None:
        self.part = part
        super().__init__(message)


def inspect_file(name: str, file: Path | ByteSource) -> Inspected:
    """What the file holds. Raises `DamagedFile`, `Unusable`, and `OSError` if it cannot be read."""
    shard = _SHARD.search(file.name)
    header = _of_folder(file) if isinstance(file, Path) and file.is_dir() else read_header(file)
    if not header.tensors:
        raise DamagedFile("holds no tensors: get it again")
    adapter = recognise_adapter(header)
    if adapter is not None:
        if not adapter.targets:
            raise Unusable(
                f"is a LoRA of {adapter.layers} layers, which are those of no model that is known here"
            )
        return Inspected(name, header, (), adapter=adapter)
    kind = other_adapter(header)
    if kind is not None:
        raise Unusable(f"is a {kind}, not a LoRA: Framefit does not apply it")
    parts = recognise(header)
    fitting = tuple(part for part in parts if part.fits)
    if not fitting:
        raise _unusable(header, parts, shard)
    return Inspected(name, header, fitting, tuple(part.prefix or "others" for part in parts if not part.fits))


def _of_folder(folder: Path) -> WeightsHeader:
    """The tensors of all files of a component's folder."""
    if (folder / "model_index.json").is_file():
        raise Unusable("is the folder of a whole model, which an entry names as its source or base")
    files = sorted(folder.glob("*.safetensors"))
    if not files and (shard := next(folder.glob("*-00001-of-*.gguf"), None)) is not None:
        raise Unusable(_in_shards(shard.name))
    shards = [path for path in files if _SHARD.search(path.name)]
    if not files or (len(files) > 1 and len(shards) < len(files)):
        raise Unusable(f"is a folder with {len(files)} safetensors files, of which none is the component's")
    tensors: dict[str, StoredTensor] = {}
    metadata: dict[str, Any] = {}
    for path in files:
        header = read_header(path)
        tensors |= header.tensors
        metadata |= header.metadata
    return WeightsHeader(header.format, tensors, metadata)


def _unusable(header: WeightsHeader, parts: Sequence[Part], shard: re.Match[str] | None) -> Unusable:
    if shard is not None and int(shard[2]) > 1 and shard[3] == "gguf":
        return Unusable(_in_shards(shard.string))
    if shard is not None and int(shard[2]) > 1:
        return Unusable(
            f"is part {int(shard[1])} of {int(shard[2])} of a file: name the folder that has all of them"
        )
    near = max(
        (part for part in parts if part.architecture), key=lambda part: part.stored_bytes, default=None
    )
    kind = foreign_kind(header)
    if near is None or near.architecture is None:
        first = ", ".join(list(header.tensors)[:3])
        return Unusable(f"is {kind}" if kind else f"fits no component that is known; it begins with {first}")
    text = differences_text(near.differences)
    title = f"{near.architecture.title} ({near.architecture.class_name}, {near.layout} layout)"
    if kind is not None and near.differences.extra:
        return Unusable(f"is {kind}", near)
    return Unusable(f"fits no component that is known; nearest is {title}, but {text}", near)


def _in_shards(name: str) -> str:
    """What to do with a GGUF file in parts, of which no loader here takes more than one."""
    first = _SHARD.sub(r"-00001-of-\2.\3", name)
    return (
        f"is one of several parts of a GGUF file: join them with llama-gguf-split --merge {first} whole.gguf"
    )


def differences_text(differences: Differences) -> str:
    """The differences in one line, with runs of numbers in one name and the first few names only."""
    texts = []
    for label, names in (("missing", differences.missing), ("extra", differences.extra)):
        if names:
            texts.append(f"{len(names)} {label}: {_few(list(packed(dict.fromkeys(names, ()))))}")
    if differences.misshaped:
        shapes = [
            f"{name} is {list(found)}, not {list(wanted)}" for name, found, wanted in differences.misshaped
        ]
        texts.append(f"{len(shapes)} of another shape: {_few(shapes, 2)}")
    return "; ".join(texts)


def _few(texts: Sequence[str], most: int = _MOST_NAMED) -> str:
    return ", ".join(texts[:most]) + (", ..." if len(texts) > most else "")


def as_document(inspected: Inspected) -> dict[str, Any]:
    """The file as JSON values."""
    adapter = inspected.adapter
    return {
        "file": inspected.name,
        "format": inspected.header.format,
        "bytes": inspected.header.size_bytes,
        "bytes_by_dtype": inspected.header.bytes_by_dtype,
        "declared": declared_formats(inspected.header),
        "parts": [part_document(part) for part in inspected.parts],
        "others": list(inspected.others),
        "lora": adapter
        and {
            "ranks": list(adapter.ranks),
            "layers": adapter.layers,
            "fits": [target.title for target in adapter.targets],
        },
    }


def part_document(part: Part) -> dict[str, Any]:
    """A part as JSON values."""
    known = part.architecture
    return {
        "component": known and known.component,
        "class": known and known.class_name,
        "architecture": known and known.title,
        "models": [model.name for model in known.models] if known else [],
        "layout": part.layout,
        "prefix": part.prefix,
        "form": part.form,
        "stored_bytes": part.stored_bytes,
        "bf16_bytes": BYTES_OF_BF16 * part.elements,
        "unverified": known.unverified(part.layout) if known else "",
        "missing": list(part.differences.missing),
        "extra": list(part.differences.extra),
        "misshaped": [
            {"name": name, "shape": list(found), "expected": list(wanted)}
            for name, found, wanted in part.differences.misshaped
        ],
    }
