"""The clean latents that a step of a scheduler aims at, from what `scheduler.step` was given.

Every formula is a sum of the step's own tensors with factors that the scheduler knows, so a part of the
latents can be estimated without the rest. A scheduler that is not known has no estimate: it raises
`NoEstimate`, never gives a wrong one. Must not know pipelines or what the estimate is shown as.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

Factor = float | Tensor  # a tensor has the shape of the latents when it is expanded


class NoEstimate(Exception):
    """The scheduler, or the way it is set up, is not known; the message names it."""


@dataclass(frozen=True, slots=True)
class CleanEstimate:
    """A sum of factors times tensors of one shape: the clean latents, not computed yet."""

    terms: tuple[tuple[Factor, Tensor], ...]

    @property
    def shape(self) -> torch.Size:
        """The shape of the latents as the scheduler sees them."""
        return self.terms[0][1].shape

    def part(self, select: Callable[[Tensor], Tensor]) -> Tensor:
        """The estimate of what `select` takes of the latents, in float32 on their device."""
        total: Tensor | None = None
        for factor, tensor in self.terms:
            if isinstance(factor, Tensor):
                factor = select(factor.expand_as(tensor)).float()
            one = select(tensor).float() * factor
            total = one if total is None else total.add_(one)
        assert total is not None
        return total


def clean_estimate(
    scheduler: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any], result: Any
) -> CleanEstimate:
    """The estimate of the step `scheduler.step(*args, **kwargs)` that has just returned `result`.

    At the last step it is the result itself, to rounding, where the scheduler's last noise level is zero.
    Raises `NoEstimate`.
    """
    given = getattr(result, "pred_original_sample", None)
    if isinstance(given, Tensor):
        return CleanEstimate(((1.0, given),))
    for kind in type(scheduler).__mro__:
        if kind.__name__ in _FORMULAS:
            asked = inspect.signature(vars(kind)["step"]).bind(scheduler, *args, **kwargs).arguments
            return _FORMULAS[kind.__name__](scheduler, asked)
    raise NoEstimate(f"{type(scheduler).__name__} is not a scheduler whose estimate is known")


def _flow(scheduler: Any, asked: Mapping[str, Any]) -> CleanEstimate:
    """`x0 = x - sigma v` for `x = (1 - sigma) x0 + sigma noise` and `v = noise - x0`.

    Lipman et al., "Flow Matching for Generative Modeling" (2022); Liu et al., "Flow Straight and Fast"
    (2022).
    With a noise level for each token, diffusers' scheduler takes the velocity with the other sign.
    """
    output, sample = asked["model_output"], asked["sample"]
    timesteps = asked.get("per_token_timesteps")
    if timesteps is not None:
        sigmas = (timesteps / scheduler.config.num_train_timesteps)[..., None]
        sign = -1.0 if scheduler.config.stochastic_sampling else 1.0
        return CleanEstimate(((1.0, sample), (sign * sigmas, output)))
    return CleanEstimate(((1.0, sample), (-_sigma(scheduler), output)))


def _variance_exploding(scheduler: Any, asked: Mapping[str, Any]) -> CleanEstimate:
    """For `x = x0 + sigma noise`, with the preconditioning of Karras et al., "Elucidating the Design Space of
    Diffusion-Based Generative Models" (2022), section 5 and table 1, for data of variance 1.

    `x0 = x - sigma e` (noise), `x0 = x / (sigma^2 + 1) - v sigma / sqrt(sigma^2 + 1)` (velocity).
    """
    output, sample, sigma = asked["model_output"], asked["sample"], _sigma(scheduler)
    if asked.get("s_churn"):
        raise NoEstimate(f"{type(scheduler).__name__} adds noise before its step")
    match scheduler.config.prediction_type:
        case "epsilon":
            return CleanEstimate(((1.0, sample), (-sigma, output)))
        case "v_prediction":
            return CleanEstimate(
                ((1 / (sigma**2 + 1), sample), (-sigma / (sigma**2 + 1) ** 0.5, output)),
            )
        case "sample" | "original_sample":
            return CleanEstimate(((1.0, output),))
    raise _unknown(scheduler)


def _variance_preserving(scheduler: Any, asked: Mapping[str, Any]) -> CleanEstimate:
    """For `x = sqrt(a) x0 + sqrt(1 - a) noise`, `a` the product of the alphas up to the timestep.

    Song et al., "Denoising Diffusion Implicit Models" (2020), equation 9, for noise; Salimans and Ho,
    "Progressive Distillation" (2022), appendix D, for the velocity.
    """
    alpha_product = float(scheduler.alphas_cumprod[asked["timestep"]])
    return _combined(scheduler, asked, alpha_product**0.5, (1 - alpha_product) ** 0.5)


def _ddim(scheduler: Any, asked: Mapping[str, Any]) -> CleanEstimate:
    """As `_variance_preserving`, for a scheduler that may clip its estimate."""
    if scheduler.config.thresholding or scheduler.config.clip_sample:
        raise NoEstimate(f"{type(scheduler).__name__} clips its estimate")
    return _variance_preserving(scheduler, asked)


def _multistep(scheduler: Any, asked: Mapping[str, Any]) -> CleanEstimate:
    """For solvers that keep `sigma`, the ratio of noise to signal: `x = a x0 + s noise`.

    Lu et al., "DPM-Solver++" (2022), section 3, and Zhao et al., "UniPC" (2023): `a = 1 / sqrt(sigma^2 + 1)`
    and `s = sigma a`; for flow matching `a = 1 - sigma` and `s = sigma`.
    """
    sigma = _sigma(scheduler)
    if scheduler.config.prediction_type == "flow_prediction":
        return CleanEstimate(((1.0, asked["sample"]), (-sigma, asked["model_output"])))
    if getattr(scheduler.config, "thresholding", False):
        raise NoEstimate(f"{type(scheduler).__name__} clips its estimate")
    if getattr(scheduler.config, "use_flow_sigmas", False):
        return _combined(scheduler, asked, 1 - sigma, sigma)
    alpha = 1 / (sigma**2 + 1) ** 0.5
    return _combined(scheduler, asked, alpha, sigma * alpha)


def _combined(scheduler: Any, asked: Mapping[str, Any], signal: float, noise: float) -> CleanEstimate:
    output, sample = asked["model_output"], asked["sample"]
    match scheduler.config.prediction_type:
        case "epsilon":
            return CleanEstimate(((1 / signal, sample), (-noise / signal, output)))
        case "v_prediction":
            return CleanEstimate(((signal, sample), (-noise, output)))
        case "sample":
            return CleanEstimate(((1.0, output),))
    raise _unknown(scheduler)


def _unknown(scheduler: Any) -> NoEstimate:
    prediction = scheduler.config.prediction_type
    return NoEstimate(f"{type(scheduler).__name__} predicts {prediction}, whose estimate is not known")


def _sigma(scheduler: Any) -> float:
    """The noise level of the step that has just been taken: the scheduler has moved on to the next."""
    index = scheduler.step_index
    if not index:
        raise NoEstimate(f"{type(scheduler).__name__} does not tell which step it took")
    return float(scheduler.sigmas[index - 1])


_FORMULAS: dict[str, Callable[[Any, Mapping[str, Any]], CleanEstimate]] = {
    "CogVideoXDDIMScheduler": _variance_preserving,
    "CogVideoXDPMScheduler": _variance_preserving,
    "DDIMScheduler": _ddim,
    "DPMSolverMultistepScheduler": _multistep,
    "DynamiCrafterScheduler": _variance_preserving,
    "EulerAncestralDiscreteScheduler": _variance_exploding,
    "EulerDiscreteScheduler": _variance_exploding,
    "FlowMatchEulerDiscreteScheduler": _flow,
    "UniPCMultistepScheduler": _multistep,
}
