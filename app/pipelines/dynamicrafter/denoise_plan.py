"""How the denoising of one video fits the memory that is free: guidance in one pass or two, transformers in
parts.

Owns the ladder of ways and the choice among them; all give the same result. Bytes come from a trace of the
UNet on meta tensors, so nothing is run and no weights are needed.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch

from adaptive.errors import DoesNotFit
from adaptive.memory.live_bytes import trace_peak
from app.pipelines.dynamicrafter.networks.unet import DynamiCrafterUNet

MARGIN = 1.3
"""What kernels' workspace and fragmentation may add to the traced tensors."""


@dataclass(frozen=True, slots=True)
class DenoiseRung:
    """One way to run a step: `guidance_passes` as the pipeline takes them, and parts of the UNet's slices."""

    guidance_passes: int
    slices: int


# Fastest first. More than four parts save nothing: by then the convolutions are the peak.
GUIDED = (DenoiseRung(1, 1), DenoiseRung(1, 2), DenoiseRung(1, 4), DenoiseRung(2, 2), DenoiseRung(2, 4))
UNGUIDED = (DenoiseRung(1, 1), DenoiseRung(1, 2), DenoiseRung(1, 4))


@dataclass(frozen=True, slots=True)
class DenoiseShape:
    """Latent frames of one video and how many videos there are."""

    frames: int
    height: int
    width: int
    videos: int = 1


@dataclass(frozen=True, slots=True)
class DenoisePlan:
    """The chosen rung, its predicted bytes above weights and inputs, and why it was chosen."""

    rung: DenoiseRung
    predicted_bytes: int
    budget_bytes: int
    reason: str

    def as_json(self) -> dict[str, Any]:
        """The plan for a job's history."""
        return {
            "guidance_passes": self.rung.guidance_passes,
            "slices": self.rung.slices,
            "predicted_bytes": self.predicted_bytes,
            "budget_bytes": self.budget_bytes,
            "reason": self.reason,
        }


def plan_denoise(peak_bytes: Callable[[DenoiseRung], int], *, guided: bool, budget_bytes: int) -> DenoisePlan:
    """The fastest rung whose `peak_bytes` fit the budget; asks for no more rungs than it needs.

    Raises DoesNotFit, with the bytes of the smallest rung, where none fits.
    """
    ladder = GUIDED if guided else UNGUIDED
    refused = 0
    for rung in ladder:
        needed = peak_bytes(rung)
        if needed <= budget_bytes:
            reason = "fastest way" if rung is ladder[0] else f"the way before needs {refused:,} bytes"
            return DenoisePlan(rung, needed, budget_bytes, reason)
        refused = needed
    raise DoesNotFit("denoising in its smallest parts", needed_bytes=refused, budget_bytes=budget_bytes)


def traced_peaks(
    unet_config: Mapping[str, Any], shape: DenoiseShape, dtype: torch.dtype, *, guided: bool
) -> Callable[[DenoiseRung], int]:
    """For `plan_denoise`: bytes of a step by rung, margin included; traced when first asked for, then kept.

    `unet_config` is the UNet's configuration. A trace takes seconds for the published models, whatever the
    size.
    """
    settings = {key: value for key, value in unet_config.items() if not key.startswith("_")}
    key = json.dumps(settings, sort_keys=True)

    def peak_bytes(rung: DenoiseRung) -> int:
        batch = shape.videos * (2 if guided and rung.guidance_passes == 1 else 1)
        return round(_traced_bytes(key, shape, batch, rung.slices, dtype) * MARGIN)

    return peak_bytes


@lru_cache(maxsize=256)
def _traced_bytes(config: str, shape: DenoiseShape, batch: int, slices: int, dtype: torch.dtype) -> int:
    settings = json.loads(config)
    with torch.device("meta"):
        unet = DynamiCrafterUNet(**settings).eval().requires_grad_(False)
        for parameter in unet.parameters():
            parameter.data = parameter.data.to(dtype)
        unet.set_attention_slice(slices)
        tokens = unet.config.text_tokens + shape.frames * unet.config.image_tokens_per_frame
        size = (batch, unet.config.in_channels, shape.frames, shape.height, shape.width)
        sample = torch.empty(size, dtype=dtype)
        context = torch.empty(batch, tokens, unet.config.cross_attention_dim, dtype=dtype)
        number = torch.empty((), dtype=torch.int64)
    return trace_peak(lambda: unet(sample, number, context, fs=number, return_dict=False)).peak_bytes
