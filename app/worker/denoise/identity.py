"""What a checkpoint was made with: a resume with anything else would give other bits, so it is not used.

Where the weights lie is no part of it: offloading changes no arithmetic, and a job that ran out of memory is
placed anew.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping
from importlib.metadata import version
from typing import Any

import torch

from adaptive.denoise.watch import denoisers_of, schedulers_of
from adaptive.device.probe import device_name
from adaptive.version import __version__
from app.jobs import JobSpec
from app.models.entries import ModelEntry
from app.models.parts.entry_parts import part_signatures
from app.models.parts.scaled import Fp8Linear

# Fields of a request that say nothing about the latents.
_OF_NO_LATENTS = frozenset(
    {
        "decode_strategy",
        "embed_metadata",
        "exact_only",
        "frames_per_chunk",
        "continue_from",
        "image_size",
        "keyframe_sizes",
        "last_image_size",
        "memory_budget_bytes",
        "priority",
        "webhook_url",
    }
)
_LIBRARIES = ("torch", "diffusers", "transformers", "accelerate")
_SAMPLED_VALUES = 4


def checkpoint_identity(
    pipe: Any, entry: ModelEntry, device: torch.device, spec: JobSpec, *images: bytes | None
) -> dict[str, str]:
    """Names of what must be equal, with digests or values."""
    model = entry.model_dump(mode="json", include={"pipeline", "dtype", "vae_dtype", "call", "resolution"})
    model |= part_signatures(entry)
    sampling = {"sigmas", "timesteps", "shift", "scheduler"}
    model |= entry.recipe.model_dump(mode="json", include=sampling, exclude_defaults=True)
    if entry.text_encoder_dtype is not None:
        model["text_encoder_dtype"] = entry.text_encoder_dtype
    return {
        "request": request_digest(spec),
        "image": _digest(*(hashlib.sha256(image or b"").hexdigest() for image in images)),
        "model": f"{entry.name} {_digest(json.dumps(model, sort_keys=True))}",
        "scheduler": _digest(*_schedulers(pipe)),
        "weights": _digest(*_samples(pipe)),
        "device": device_name(device),
        "library version": " ".join(
            [f"framefit {__version__}", *(f"{name} {version(name)}" for name in _LIBRARIES)]
        ),
    }


def request_digest(spec: JobSpec) -> str:
    """The digest of the fields that the latents depend on. Defaults of newer fields do not change it."""
    request = spec.model_dump(mode="json", exclude=set(_OF_NO_LATENTS))
    if not spec.keyframes:  # as checkpoints of earlier versions have it
        del request["keyframes"]
    return _digest(json.dumps(request, sort_keys=True))


def difference(one: Mapping[str, str], other: Mapping[str, str]) -> str | None:
    """The name of the first thing that is not the same in both; None if all are."""
    return next((name for name in other if one.get(name) != other[name]), None)


def _schedulers(pipe: Any) -> Iterator[str]:
    for name, scheduler in schedulers_of(pipe).items():
        yield f"{name} {type(scheduler).__name__} {sorted(scheduler.config.items())!r}"


def _samples(pipe: Any) -> Iterator[str]:
    """For every tensor of the denoisers its name, form and first values: other weights differ in these."""
    for name, module in denoisers_of(pipe).items():
        for key, tensor in [*module.named_parameters(), *module.named_buffers()]:
            form = f"{name}.{key} {tuple(tensor.shape)} {tensor.dtype}"
            yield f"{form} {_first_values(tensor)}"
        for key, layer in module.named_modules():
            if isinstance(layer, Fp8Linear):
                yield f"{name}.{key} {layer.scale}"


def _first_values(tensor: torch.Tensor) -> str:
    try:
        return str(tensor.detach().flatten()[:_SAMPLED_VALUES].tolist())
    except (NotImplementedError, RuntimeError):  # quantized in a way that cannot be cut
        return type(tensor).__name__


def _digest(*texts: str) -> str:
    return hashlib.sha256("\n".join(texts).encode()).hexdigest()
