"""Recognises the components in a file: compares the names and shapes of its weights with every known list."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cache

from app.models.files.architectures.key_lists import Shape, key_lists
from app.models.files.architectures.number_format import StoredWeight, form_of, weights_of
from app.models.files.architectures.table import ARCHITECTURES, Architecture
from app.models.files.stored import StoredTensor, WeightsHeader

# What stands before a component's own names in files of several components, of ComfyUI and of transformers.
PREFIXES = (
    "model.diffusion_model.",
    "model.model.",
    "diffusion_model.",
    "model.language_model.",
    "language_model.model.",
    "language_model.",
    "model.vision_tower.vision_model.",
    "model.vision_tower.",
    "vision_tower.vision_model.",
    "vision_tower.",
    "vision_model.",
    "model.multi_modal_projector.",
    "multi_modal_projector.",
    "first_stage_model.",
    "audio_vae.",
    "vocoder.",
    "vae.",
    "conditioner.",
    "cond_stage_model.",
    "text_encoders.",
    "text_encoder.",
    "text_model.",
    "transformer.",
    "model.",
)
_NUMBER = re.compile(r"(?<![^.])\d+(?![^.])")
# A list that shares fewer names with a file says nothing about it.
_LEAST_LIKENESS = 0.35


@dataclass(frozen=True, slots=True)
class Differences:
    """How a file differs from a list: names, and for other shapes name, the file's and the list's shape."""

    missing: tuple[str, ...] = ()
    extra: tuple[str, ...] = ()
    misshaped: tuple[tuple[str, Shape, Shape], ...] = ()

    def __bool__(self) -> bool:
        return bool(self.missing or self.extra or self.misshaped)


@dataclass(frozen=True, slots=True)
class Part:
    """The weights of a file that stand under one prefix, and the list they are most like.

    `architecture` is None if no list is like them. They fit it if there are no `differences`.
    """

    prefix: str
    weights: Mapping[str, StoredWeight]
    form: str
    stored_bytes: int
    architecture: Architecture | None
    layout: str
    differences: Differences

    @property
    def fits(self) -> bool:
        """Whether the part is a component that is known."""
        return self.architecture is not None and not self.differences

    @property
    def elements(self) -> int:
        """How many values its weights have."""
        return sum(weight.elements for weight in self.weights.values())


def recognise(header: WeightsHeader) -> list[Part]:
    """The components in the file, the largest first."""
    weights: dict[str, dict[str, StoredWeight]] = {}
    for name, weight in weights_of(header).items():
        prefix = _prefix(name)
        weights.setdefault(prefix, {})[name.removeprefix(prefix)] = weight
    tensors: dict[str, dict[str, StoredTensor]] = {prefix: {} for prefix in weights}
    for name, tensor in header.tensors.items():  # with the scales and maps
        tensors.setdefault(_prefix(name), {})[name] = tensor
    parts = [_part(header, prefix, each, tensors[prefix]) for prefix, each in weights.items()]
    return sorted(parts, key=lambda part: -part.stored_bytes)


def _prefix(name: str) -> str:
    return next((each for each in PREFIXES if name.startswith(each)), "")


def _part(
    header: WeightsHeader,
    prefix: str,
    weights: Mapping[str, StoredWeight],
    tensors: Mapping[str, StoredTensor],
) -> Part:
    stored = sum(tensor.size_bytes for tensor in tensors.values())
    form = form_of(header, tensors)
    found = _nearest(weights)
    if found is None:
        return Part(prefix, weights, form, stored, None, "", Differences())
    architecture, layout, differences = found
    return Part(prefix, weights, form, stored, architecture, layout, differences)


def _nearest(weights: Mapping[str, StoredWeight]) -> tuple[Architecture, str, Differences] | None:
    kinds = {_NUMBER.sub("#", name) for name in weights}
    likely = []
    for architecture, layout, shapes, known in _lists():
        likeness = len(kinds & known) / len(kinds | known)
        if likeness >= _LEAST_LIKENESS:
            likely.append((likeness, architecture, layout, shapes))
    ranked = [
        (likeness - len(each.missing + each.extra + each.misshaped) / len(shapes), architecture, layout, each)
        for likeness, architecture, layout, shapes in likely
        for each in [_differences(weights, shapes, architecture.optional)]
    ]
    if not ranked:
        return None
    _, architecture, layout, differences = max(ranked, key=lambda each: each[0])
    return architecture, layout, differences


@cache
def _lists() -> tuple[tuple[Architecture, str, Mapping[str, Shape], frozenset[str]], ...]:
    """Each list with its architecture, its layout, and its names without numbers."""
    lists = key_lists()
    return tuple(
        (architecture, layout, shapes, frozenset(_NUMBER.sub("#", name) for name in shapes))
        for architecture in ARCHITECTURES
        for layout, shapes in lists[architecture.keys].items()
    )


def _differences(
    weights: Mapping[str, StoredWeight], shapes: Mapping[str, Shape], optional: tuple[str, ...]
) -> Differences:
    def counts(name: str) -> bool:
        return not any(fnmatchcase(name, pattern) for pattern in optional)

    return Differences(
        tuple(sorted(name for name in shapes.keys() - weights.keys() if counts(name))),
        tuple(sorted(name for name in weights.keys() - shapes.keys() if counts(name))),
        tuple(
            (name, weights[name].shape, shape)
            for name, shape in sorted(shapes.items())
            if name in weights and not weights[name].has_shape(shape)
        ),
    )
