"""How large a model is, part by part, and where its weights should live: known before anything is loaded.

Turns component configurations into the planner's sizes. Everything runs on meta tensors; the device is known
only as bytes.
"""

import importlib
from collections.abc import Mapping
from typing import Any

import torch

from adaptive.errors import DoesNotFit
from adaptive.memory import MemoryProfile, Residuals
from adaptive.placement import Stage
from adaptive.planner import ComponentSize, Placement, plan_weights
from adaptive.trace import trace_peak
from adaptive.types import LatentShape, VideoShape
from app.components import Component, build_component
from app.config import ModelEntry
from app.placement import DENOISERS

MIB = 2**20
# A prompt of some hundred tokens; the text encoder's activations are small beside its weights.
PROMPT_ACTIVATION_BYTES = 256 * MIB
# For denoisers whose inputs are not known here.
UNKNOWN_DENOISE_ACTIVATION_BYTES = 3072 * MIB
# Workspace of attention and matrix kernels, and fragmentation, beyond the traced tensors.
DENOISE_MARGIN = 1.3
# Latent frames a chunk from which on chunks take no longer than one call (tests/bench/decode.py).
FULL_SPEED_CHUNK = 4


def component_sizes(components: Mapping[str, Component], dtype: str) -> list[ComponentSize]:
    """The planner's view of the components, weights as wide as `dtype`."""
    return [_size(name, component, _dtype(dtype)) for name, component in components.items()]


def choose_placement(
    components: Mapping[str, Component],
    sizes: list[ComponentSize],
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
    guided = 2 if entry.defaults.guidance_scale > 1 else 1
    activations = {
        Stage.PROMPT: PROMPT_ACTIVATION_BYTES,
        Stage.DENOISE: max(
            _denoise_bytes(part, latent, entry.dtype, guided) for part in _denoisers(components)
        ),
    }

    def placed(frames_per_chunk: int) -> Placement:
        decode_bytes = profile.estimate(latent, frames_per_chunk, Residuals("cuda")).upper_bytes
        return plan_weights(
            sizes,
            activation_bytes={**activations, Stage.DECODE: decode_bytes},
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


def _denoise_bytes(component: Component, latent: LatentShape, dtype: str, batch: int) -> int:
    """Traced peak of one denoising step."""
    inputs = _DENOISER_INPUTS.get(component.class_name)
    if inputs is None:
        return UNKNOWN_DENOISE_ACTIVATION_BYTES
    with torch.device("meta"):
        module = build_component(component).eval()
        for parameter in module.parameters():
            parameter.data = parameter.data.to(_dtype(dtype))
        arguments = inputs(module.config, latent, _dtype(dtype), batch)
    return round(trace_peak(lambda: module(**arguments)).peak_bytes * DENOISE_MARGIN)


def _ltx_inputs(
    config: Mapping[str, Any], latent: LatentShape, dtype: torch.dtype, batch: int
) -> dict[str, Any]:
    tokens, words = latent.frames * latent.height * latent.width, 128
    return {
        "hidden_states": torch.empty(batch, tokens, config["in_channels"], dtype=dtype),
        "encoder_hidden_states": torch.empty(batch, words, config["caption_channels"], dtype=dtype),
        "timestep": torch.empty(batch, tokens),
        "encoder_attention_mask": torch.empty(batch, words, dtype=torch.bool),
        "num_frames": latent.frames,
        "height": latent.height,
        "width": latent.width,
        "rope_interpolation_scale": (1.0, 1.0, 1.0),
        "return_dict": False,
    }


def _dynamicrafter_inputs(
    config: Mapping[str, Any], latent: LatentShape, dtype: torch.dtype, batch: int
) -> dict[str, Any]:
    tokens = config["text_tokens"] + latent.frames * config["image_tokens_per_frame"]
    size = (batch, config["in_channels"], latent.frames, latent.height, latent.width)
    return {
        "sample": torch.empty(size, dtype=dtype),
        "timestep": torch.empty((), dtype=torch.int64),
        "encoder_hidden_states": torch.empty(batch, tokens, config["cross_attention_dim"], dtype=dtype),
        "return_dict": False,
    }


_DENOISER_INPUTS = {
    "DynamiCrafterUNet": _dynamicrafter_inputs,
    "LTXVideoTransformer3DModel": _ltx_inputs,
}


def _dtype(name: str) -> torch.dtype:
    found = getattr(importlib.import_module("torch"), name)
    assert isinstance(found, torch.dtype)
    return found
