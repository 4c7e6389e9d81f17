"""Plans denoising for the memory that is free: guidance in one pass or two, transformers in slices.

Owns the rungs and the choice among them; all give the same result. Bytes come from a trace of the UNet on
meta tensors, which needs no weights.
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
"""Factor for kernels' workspace and fragmentation above the traced tensors."""


@dataclass(frozen=True, slots=True)
class DenoiseRung:
    """One way to run a step: the pipeline's `guidance_passes` and the UNet's number of slices."""

    guidance_passes: int
    slices: int


# Fastest first. More than four slices save nothing: then the convolutions make the peak.
GUIDED = (DenoiseRung(1, 1), DenoiseRung(1, 2), DenoiseRung(1, 4), DenoiseRung(2, 2), DenoiseRung(2, 4))
UNGUIDED = (DenoiseRung(1, 1), DenoiseRung(1, 2), DenoiseRung(1, 4))


@dataclass(frozen=True, slots=True)
class DenoiseShape:
    """The latent frames, rows and columns of one video, and the number of videos."""

    frames: int
    height: int
    width: int
    videos: int = 1


@dataclass(frozen=True, slots=True)
class DenoisePlan:
    """The chosen rung, its predicted bytes above weights and inputs, and the reason."""

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
    """The fastest rung whose `peak_bytes` fit the budget; traces no rung below it.

    Raises DoesNotFit with the bytes of the smallest rung if none fits.
    """
    allowed = GUIDED if guided else UNGUIDED
    refused = 0
    for rung in allowed:
        needed = peak_bytes(rung)
        if needed <= budget_bytes:
            reason = (
                "fastest option" if rung is allowed[0] else f"the next faster option needs {refused:,} bytes"
            )
            return DenoisePlan(rung, needed, budget_bytes, reason)
        refused = needed
    raise DoesNotFit("denoising in the smallest slices", needed_bytes=refused, budget_bytes=budget_bytes)


def traced_peaks(
    unet_config: Mapping[str, Any], shape: DenoiseShape, dtype: torch.dtype, *, guided: bool
) -> Callable[[DenoiseRung], int]:
    """The `peak_bytes` function for `plan_denoise`: bytes of a step by rung, margin included.

    `unet_config` is the UNet's configuration. Each trace is cached. It takes seconds for the published
    models, at every size.
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
