"""How large a model is, part by part, as it is and with matrices in int8: known before anything is loaded.

Turns component configurations into the planner's sizes. Everything runs on meta tensors.
"""

import importlib
from collections.abc import Mapping

import torch

from adaptive.planning.planner import ComponentSize
from adaptive.planning.weight_placement import Stage
from app.config import Settings
from app.models import profiles
from app.models.components import Component, build_component
from app.models.denoiser_memory import trace_curve
from app.models.entries import ModelEntry
from app.models.place_weights import DENOISERS, TRANSFORMERS
from app.models.requirements import ModelRequirements

# Beside each row of a matrix in int8, torchao keeps its scale in float32 and its zero point in int8.
BYTES_A_QUANTIZED_ROW = 5


def component_sizes(components: Mapping[str, Component], dtype: str) -> list[ComponentSize]:
    """The planner's view of the components, weights as wide as `dtype`."""
    return [_size(name, component, _dtype(dtype)) for name, component in components.items()]


def stored_requirements(
    settings: Settings, entry: ModelEntry, components: Mapping[str, Component], latent_channels: int
) -> ModelRequirements:
    """The model's stored demand, traced and stored where there is none yet."""
    kept = profiles.load_requirements(settings, entry)
    if kept is None:
        kept = trace_requirements(components, latent_channels, entry.dtype)
        profiles.save_requirements(settings, entry, kept)
    return kept


def trace_requirements(
    components: Mapping[str, Component], latent_channels: int, dtype: str
) -> ModelRequirements:
    """What the model demands of a device at any shape; takes seconds."""
    curves = [trace_curve(part, latent_channels, dtype) for part in _denoisers(components)]
    return ModelRequirements(tuple(component_sizes(components, dtype)), tuple(curves))


def _size(name: str, component: Component, dtype: torch.dtype) -> ComponentSize:
    with torch.device("meta"):
        module = build_component(component)
    if name == "vae":
        stages: tuple[Stage, ...] = (Stage.DENOISE, Stage.DECODE)  # it encodes the image, too
    elif name in DENOISERS:
        stages = (Stage.DENOISE,)
    else:
        stages = (Stage.PROMPT,)
    layers = [_bytes([*part.parameters(False), *part.buffers(False)], dtype) for part in module.modules()]
    weights = _bytes([*module.parameters(), *module.buffers()], dtype)
    groups = None if name == "vae" else max(layers)
    rounded = _quantized_bytes(module, dtype) if name in TRANSFORMERS else None
    return ComponentSize(name, weights, stages, groups, rounded)


def _quantized_bytes(module: torch.nn.Module, dtype: torch.dtype) -> int | None:
    """What is left with the matrices of linear layers in int8, as diffusers and torchao load them; None where
    there are none. Parts that a class keeps in float32 are loaded so.
    """
    kept = set(getattr(module, "_keep_in_fp32_modules", None) or ())
    total = rows = 0
    for name, tensor in [*module.named_parameters(), *module.named_buffers()]:
        layer = module.get_submodule(name.rpartition(".")[0])
        if kept & set(name.split(".")):
            total += _bytes([tensor], torch.float32)
        elif isinstance(layer, torch.nn.Linear) and name.endswith(".weight"):
            total += tensor.numel()
            rows += tensor.shape[0]
        else:
            total += _bytes([tensor], dtype)
    return total + BYTES_A_QUANTIZED_ROW * rows if rows else None


def _bytes(tensors: list[torch.Tensor], dtype: torch.dtype) -> int:
    return sum(t.numel() * (dtype.itemsize if t.is_floating_point() else t.element_size()) for t in tensors)


def _denoisers(components: Mapping[str, Component]) -> list[Component]:
    return [component for name, component in components.items() if name in DENOISERS]


def _dtype(name: str) -> torch.dtype:
    found = getattr(importlib.import_module("torch"), name)
    assert isinstance(found, torch.dtype)
    return found
