"""One guided prediction of the UNet: conditioning, classifier-free guidance, rescale.

Owns the conditioning inputs and how the conditional and unconditional predictions are combined. Must not know
prompts or pixels.
"""

from dataclasses import dataclass

import torch

from app.pipelines.dynamicrafter.networks.unet import DynamiCrafterUNet


@dataclass(frozen=True, slots=True)
class Conditions:
    """The conditioning inputs of every step.

    `context`: text and image tokens `[B, tokens, D]`. `uncond_context`: the same without prompt and image;
    None without guidance. `image_latents`: `[B, 4, T, h, w]`, input of both predictions. `fs`: `[B]`.
    """

    context: torch.Tensor
    uncond_context: torch.Tensor | None
    image_latents: torch.Tensor
    fs: torch.Tensor


@dataclass(frozen=True, slots=True)
class Guidance:
    """The settings of classifier-free guidance.

    `scale`: 1 for none. `rescale` (0 to 1): how far the standard deviation is moved back to the conditional
    prediction's (see `guide`). `passes`: 1 makes both predictions in one batch, 2 one after the other in half
    the memory. Raises ValueError for values outside these ranges.
    """

    scale: float
    rescale: float
    passes: int = 1

    def __post_init__(self) -> None:
        if self.passes not in (1, 2):
            raise ValueError(f"guidance_passes is {self.passes}; it must be 1 or 2")
        if not 0 <= self.rescale <= 1:
            raise ValueError(f"guidance_rescale is {self.rescale}; it must be in [0, 1]")


def predict(
    unet: DynamiCrafterUNet,
    latents: torch.Tensor,
    timestep: torch.Tensor,
    conditions: Conditions,
    guidance: Guidance,
) -> torch.Tensor:
    """The guided prediction for `latents` `[B, 4, T, h, w]`, in float32 for every dtype of the UNet."""

    def run(inputs: torch.Tensor, context: torch.Tensor, fs: torch.Tensor) -> torch.Tensor:
        context = context.to(inputs.dtype)
        prediction: torch.Tensor = unet(inputs, timestep, context, fs=fs, return_dict=False)[0]
        return prediction.float()

    inputs = torch.cat([latents, conditions.image_latents], dim=1).to(unet.dtype)
    context, uncond_context, fs = conditions.context, conditions.uncond_context, conditions.fs
    if uncond_context is None:
        return run(inputs, context, fs)
    if guidance.passes == 2:
        uncond = run(inputs, uncond_context, fs)
        cond = run(inputs, context, fs)
    else:
        contexts = torch.cat([uncond_context, context])
        uncond, cond = run(torch.cat([inputs] * 2), contexts, torch.cat([fs] * 2)).chunk(2)
    return guide(uncond, cond, guidance.scale, guidance.rescale)


def conditioning_latents(first: torch.Tensor, last: torch.Tensor | None, num_frames: int) -> torch.Tensor:
    """Image latents `[B, C, h, w]` -> the UNet's conditioning channels `[B, C, num_frames, h, w]`.

    Without `last`, every frame is `first`. With it, the first frame is `first`, the last is `last`, and those
    between are zero.
    """
    if last is None:
        return first[:, :, None].repeat(1, 1, num_frames, 1, 1)
    latents = first.new_zeros(*first.shape[:2], num_frames, *first.shape[2:])
    latents[:, :, 0] = first
    latents[:, :, -1] = last
    return latents


def guide(
    unconditional: torch.Tensor, conditional: torch.Tensor, scale: float, rescale: float
) -> torch.Tensor:
    """Classifier-free guidance, with its standard deviation moved by the share `rescale` to `conditional`'s.

    Section 3.4 of "Common Diffusion Noise Schedules and Sample Steps are Flawed" (arXiv 2305.08891). The
    standard deviation is over all dimensions but the batch.
    """
    guided = unconditional + scale * (conditional - unconditional)
    if rescale <= 0:
        return guided
    dimensions = tuple(range(1, guided.ndim))
    ratio = conditional.std(dim=dimensions, keepdim=True) / guided.std(dim=dimensions, keepdim=True)
    return rescale * guided * ratio + (1 - rescale) * guided
