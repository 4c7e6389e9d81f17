"""Computes the size of each component of a model, as published and with int8 matrices, before loading it.

Turns component configurations into the planner's sizes. Everything runs on meta tensors.
"""

import importlib
import logging
from collections.abc import Mapping
from functools import partial

import torch

from adaptive.memory.live_bytes import trace_peak
from adaptive.planning.planner import ComponentSize
from adaptive.planning.weight_placement import Stage
from app.config import Settings
from app.models import profiles
from app.models.components import Component, build_component
from app.models.denoiser_memory import trace_curve
from app.models.entries import ModelEntry
from app.models.place_weights import DENOISERS, TRANSFORMERS
from app.models.requirements import ModelRequirements

log = logging.getLogger(__name__)

# torchao stores a float32 scale and an int8 zero point for each row of an int8 matrix.
BYTES_A_QUANTIZED_ROW = 5


def component_sizes(
    components: Mapping[str, Component],
    dtype: str,
    vae_dtype: str | None = None,
    text_encoder_dtype: str | None = None,
) -> list[ComponentSize]:
    """The components' sizes in the planner's terms, with floating-point weights in `dtype`.

    `vae_dtype` and `text_encoder_dtype` are those of the VAE and the text encoders if they differ. A
    component from a file of its own has the dtypes with which it is loaded.
    """

    def dtype_of(name: str) -> torch.dtype:
        if name == "vae":
            return _dtype(vae_dtype or dtype)
        own = text_encoder_dtype if name.startswith("text_encoder") else None
        return _dtype(own or dtype)

    return [_size(name, part, dtype_of(name)) for name, part in components.items()]


def stored_requirements(
    settings: Settings, entry: ModelEntry, components: Mapping[str, Component], latent_channels: int
) -> ModelRequirements:
    """The model's stored requirements; traces and stores them if there are none yet."""
    kept = profiles.load_requirements(settings, entry)
    if kept is None or None in kept.denoise:  # earlier versions traced listed denoisers only
        kept = trace_requirements(
            components, latent_channels, entry.dtype, entry.decode_dtype, entry.text_encoder_dtype
        )
        try:
            profiles.save_requirements(settings, entry, kept)
        except OSError as error:  # the next load traces them again
            log.warning("requirements_not_saved model=%s reason=%s", entry.name, error)
    return kept


def trace_requirements(
    components: Mapping[str, Component],
    latent_channels: int,
    dtype: str,
    vae_dtype: str | None = None,
    text_encoder_dtype: str | None = None,
) -> ModelRequirements:
    """Trace the model's requirements for all shapes; takes seconds. Dtypes are as in `component_sizes`.

    A step's bytes include the weights that a quantized denoiser dequantizes in it.
    """
    sizes = component_sizes(components, dtype, vae_dtype, text_encoder_dtype)
    curves = [trace_curve(part, latent_channels, dtype) for part in _denoisers(components)]
    return ModelRequirements(tuple(sizes), tuple(curves))


def weight_bytes(component: Component, bytes_per_element: int) -> int:
    """Bytes of the component's parameters and buffers, with floating-point elements of that width.

    Computed on meta tensors from the configuration alone.
    """
    with torch.device("meta"):
        module = build_component(component)
    tensors = [*module.parameters(), *module.buffers()]
    return sum(
        t.numel() * (bytes_per_element if t.is_floating_point() else t.element_size()) for t in tensors
    )


def _size(name: str, component: Component, dtype: torch.dtype) -> ComponentSize:
    with torch.device("meta"):
        module = build_component(component)
    if name == "vae":
        stages: tuple[Stage, ...] = (
            Stage.DENOISE,
            Stage.DECODE,
        )  # the VAE also encodes the image
    elif name in DENOISERS:
        stages = (Stage.DENOISE,)
    else:
        stages = (Stage.PROMPT,)
    from_file = component.part is not None and component.part.header is not None
    loaded_dtype = None if from_file else dtype
    layers = [
        _bytes([*part.parameters(False), *part.buffers(False)], loaded_dtype) for part in module.modules()
    ]
    weights = _bytes([*module.parameters(), *module.buffers()], loaded_dtype)
    groups = None if name == "vae" else max(layers)
    quantized_bytes = _quantized_bytes(module, dtype) if name in TRANSFORMERS and not from_file else None
    working = _working_bytes(module, dtype) if from_file else 0
    return ComponentSize(name, weights, stages, groups, quantized_bytes, working)


def _working_bytes(module: torch.nn.Module, dtype: torch.dtype) -> int:
    """Bytes above the weights while the largest quantized layer dequantizes its weight; 0 if none does."""
    layers = [each for each in module.modules() if type(each).__name__ in ("Fp8Linear", "GGUFLinear")]
    forms: dict[object, torch.nn.Linear] = {}
    for layer in layers:
        assert isinstance(layer, torch.nn.Linear)
        forms[layer.in_features, layer.out_features, sum(each.nbytes for each in layer.parameters())] = layer
    inputs = [torch.empty(1, layer.in_features, dtype=dtype, device="meta") for layer in forms.values()]
    calls = [partial(layer, given) for layer, given in zip(forms.values(), inputs, strict=True)]
    return max((trace_peak(call).peak_bytes for call in calls), default=0)


def _quantized_bytes(module: torch.nn.Module, dtype: torch.dtype) -> int | None:
    """Bytes with the matrices of linear layers in int8, as diffusers and torchao load them.

    None if the module has no linear layer. Parts that the class keeps in float32 count in float32.
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


def _bytes(tensors: list[torch.Tensor], dtype: torch.dtype | None) -> int:
    """Bytes of the tensors, floating-point ones in `dtype`, by default in their own."""
    if dtype is None:
        return sum(t.nbytes for t in tensors)
    return sum(t.numel() * (dtype.itemsize if t.is_floating_point() else t.element_size()) for t in tensors)


def _denoisers(components: Mapping[str, Component]) -> list[Component]:
    return [component for name, component in components.items() if name in DENOISERS]


def _dtype(name: str) -> torch.dtype:
    found = getattr(importlib.import_module("torch"), name)
    assert isinstance(found, torch.dtype)
    return found
