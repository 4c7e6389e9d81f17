"""Recognises LoRAs: matrices of low rank that change the layers of a transformer or a text encoder."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache

from app.models.files.architectures.key_lists import key_lists
from app.models.files.architectures.table import ARCHITECTURES, Architecture
from app.models.files.stored import WeightsHeader

# Name of the layer, and which of the two matrices this is, as peft, kohya's scripts and diffusers write them.
_MATRIX = re.compile(r"^(.+?)\.(?:lora_)(A|B|down|up)(?:\.default)?(?:\.weight)?$")
_OTHER_KINDS = re.compile(r"\.(hada_w[12]_[ab]|lokr_w[12](_[ab])?|oft_blocks|oft_diag)$")
PREFIXES = (
    "base_model.model.",
    "model.diffusion_model.",
    "diffusion_model.",
    "transformer.",
    "text_encoder.",
    "lora_unet_",
    "lora_te_",
    "lora_te1_",
    "unet.",
)
_LEAST_SHARE = 0.9


@dataclass(frozen=True, slots=True)
class Adapter:
    """A LoRA: its ranks, how many layers it changes, and the architectures whose layers all these are."""

    ranks: tuple[int, ...]
    layers: int
    targets: tuple[Architecture, ...]
    layouts: tuple[str, ...]


def recognise_adapter(header: WeightsHeader) -> Adapter | None:
    """The LoRA in the file; None if it holds none."""
    sides, ranks = adapted_layers(header)
    if not sides:
        return None
    found = []
    for architecture, layout, layers in _layers():
        same = sum(layers.get(flat(name)) == side for name, side in sides.items())
        if same >= _LEAST_SHARE * len(sides):
            found.append((architecture, layout))
    return Adapter(
        tuple(sorted(ranks)),
        len(sides),
        tuple(dict.fromkeys(architecture for architecture, _ in found)),
        tuple(dict.fromkeys(layout for _, layout in found)),
    )


def adapted_layers(header: WeightsHeader) -> tuple[dict[str, tuple[int | None, int | None]], set[int]]:
    """The layers that a LoRA changes, without prefixes, with their shapes (out, in); and its ranks."""
    sides: dict[str, tuple[int | None, int | None]] = {}
    ranks = set()
    for name, tensor in header.tensors.items():
        match = _MATRIX.match(name)
        if match is None or not tensor.shape:
            continue
        layer = _layer(match[1])
        rows, columns = sides.get(layer, (None, None))
        if match[2] in ("A", "down"):
            ranks.add(tensor.shape[0])
            columns = tensor.shape[1] if len(tensor.shape) > 1 else 0
        else:
            rows = tensor.shape[0]
        sides[layer] = rows, columns
    return sides, ranks


def flat(name: str) -> str:
    """kohya's scripts write underscores in place of dots."""
    return name.replace(".", "_")


def other_adapter(header: WeightsHeader) -> str | None:
    """The kind of a file that changes layers in another way than LoRA; None if it does not."""
    for name in header.tensors:
        match = _OTHER_KINDS.search(name)
        if match:
            return {"h": "LoHa", "l": "LoKr", "o": "OFT"}[match[1][0]]
    return None


def _layer(name: str) -> str:
    for prefix in PREFIXES:
        name = name.removeprefix(prefix)
    return name


@cache
def _layers() -> tuple[tuple[Architecture, str, Mapping[str, tuple[int, int]]], ...]:
    lists = key_lists()
    return tuple(
        (
            architecture,
            layout,
            {
                flat(name.removesuffix(".weight")): (shape[0], shape[1])
                for name, shape in shapes.items()
                if len(shape) == 2 and name.endswith(".weight")
            },
        )
        for architecture in ARCHITECTURES
        for layout, shapes in lists[architecture.keys].items()
    )
