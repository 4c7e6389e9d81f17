"""How large a model is, part by part, and where its weights should live: known before anything is loaded.

Turns component configurations into the planner's sizes. Everything runs on meta tensors; the device is known
only as bytes.
"""

import importlib
from collections.abc import Mapping

import torch

from adaptive.errors import DoesNotFit
from adaptive.memory import MemoryProfile, Residuals
from adaptive.placement import Stage
from adaptive.planner import ComponentSize, Placement, plan_weights
from adaptive.types import VideoShape
from app import profiles
from app.components import Component, build_component
from app.config import ModelEntry, Settings
from app.demand import ModelDemand
from app.denoisers import trace_curve
from app.placement import DENOISERS

# Latent frames a chunk from which on chunks take no longer than one call (tests/bench/decode.py).
FULL_SPEED_CHUNK = 4


def component_sizes(components: Mapping[str, Component], dtype: str) -> list[ComponentSize]:
    """The planner's view of the components, weights as wide as `dtype`."""
    return [_size(name, component, _dtype(dtype)) for name, component in components.items()]


def stored_demand(
    settings: Settings, entry: ModelEntry, components: Mapping[str, Component], latent_channels: int
) -> ModelDemand:
    """The model's stored demand, traced and stored where there is none yet."""
    kept = profiles.load_demand(settings, entry)
    if kept is None:
        kept = demand_of(components, latent_channels, entry.dtype)
        profiles.save_demand(settings, entry, kept)
    return kept


def demand_of(components: Mapping[str, Component], latent_channels: int, dtype: str) -> ModelDemand:
    """What the model demands of a device at any shape; takes seconds."""
    curves = [trace_curve(part, latent_channels, dtype) for part in _denoisers(components)]
    return ModelDemand(tuple(component_sizes(components, dtype)), tuple(curves))


def choose_placement(
    demand: ModelDemand,
    entry: ModelEntry,
    profile: MemoryProfile,
    video: VideoShape,
    *,
    device_budget_bytes: int,
    host_budget_bytes: int,
) -> Placement:
    """The fastest placement for making that video; raises `DoesNotFit`.

    Weights that leave no room for a decode at full speed make way first: a text encoder is soon back, and a
    card that is filled to the brim leaves nothing to its other users. Only where no placement has that room
    is the decode planned at its smallest.
    """
    latent = profile.traits.latent_shape(video)
    guided = entry.defaults.guidance_scale > 1

    def placed(frames_per_chunk: int) -> Placement:
        decode_bytes = profile.estimate(latent, frames_per_chunk, Residuals("cuda")).upper_bytes
        return plan_weights(
            demand.components,
            activation_bytes=demand.activation_bytes(latent, decode_bytes, guided=guided),
            device_budget_bytes=device_budget_bytes,
            host_budget_bytes=host_budget_bytes,
        )

    if not profile.can_stream:
        return placed(latent.frames)
    try:
        return placed(min(FULL_SPEED_CHUNK, latent.frames))
    except DoesNotFit:
        return placed(1)


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
    return ComponentSize(name, weights, stages, None if name == "vae" else max(layers))


def _bytes(tensors: list[torch.Tensor], dtype: torch.dtype) -> int:
    return sum(t.numel() * (dtype.itemsize if t.is_floating_point() else t.element_size()) for t in tensors)


def _denoisers(components: Mapping[str, Component]) -> list[Component]:
    return [component for name, component in components.items() if name in DENOISERS]


def _dtype(name: str) -> torch.dtype:
    found = getattr(importlib.import_module("torch"), name)
    assert isinstance(found, torch.dtype)
    return found
