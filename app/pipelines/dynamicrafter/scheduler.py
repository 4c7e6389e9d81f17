"""DynamiCrafter's variant of DDIM as a diffusers scheduler.

Owns the noise schedule, the time-step grid and one reverse step. Must not know models, guidance or
conditioning.

diffusers' DDIMScheduler differs in two ways. At a zero terminal signal-to-noise ratio it takes the square
root of a negative number. And its previous time step is `t - 1000 // S`, which is not the next entry of the
grid if the step count S does not divide 1000. Here the previous step is always the next entry of the grid.

Every coefficient is computed in float64 and applied in float32 (or in float64 for a float64 sample).
"""

import math
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.schedulers.scheduling_utils import SchedulerMixin
from diffusers.utils import BaseOutput
from diffusers.utils.torch_utils import randn_tensor

from app.pipelines.dynamicrafter.defaults import PredictionType, TimestepSpacing


@dataclass
class DynamiCrafterSchedulerOutput(BaseOutput):  # type: ignore[misc]  # diffusers is untyped
    """`prev_sample`: the sample after the step. `pred_original_sample`: the clean estimate, rescaled."""

    prev_sample: torch.Tensor
    pred_original_sample: torch.Tensor


def cumulative_alphas(
    num_train_timesteps: int, beta_start: float, beta_end: float, zero_snr: bool
) -> npt.NDArray[np.float64]:
    """The cumulative product of 1 - beta for betas linear in their square root.

    With `zero_snr`, rescaled so that the last entry is exactly 0: Algorithm 1 of "Common Diffusion Noise
    Schedules and Sample Steps are Flawed" (arXiv 2305.08891).
    """
    betas = np.linspace(beta_start**0.5, beta_end**0.5, num_train_timesteps, dtype=np.float64) ** 2
    alphas = np.cumprod(1.0 - betas)
    if zero_snr:
        root = np.sqrt(alphas)
        alphas = ((root - root[-1]) * root[0] / (root[0] - root[-1])) ** 2
    return cast("npt.NDArray[np.float64]", alphas)


def timestep_grid(spacing: TimestepSpacing, num_inference_steps: int, num_train_timesteps: int) -> list[int]:
    """The published grids of time steps, noisiest first.

    `uniform_trailing` has `num_inference_steps` entries and starts at the last training step. `uniform` steps
    by `num_train_timesteps // num_inference_steps` from 1, so it has more entries than requested if the count
    does not divide (31 for 30 of 1000). Leaves out entries outside the training steps, for which the
    published sampler fails.
    """
    if spacing == "uniform":
        grid = np.arange(0, num_train_timesteps, num_train_timesteps // num_inference_steps) + 1
    else:
        # The published grid uses a float stride. Its rounding decides halves, and may give a last entry of 0.
        stride = num_train_timesteps / num_inference_steps
        grid = np.flip(np.round(np.arange(num_train_timesteps, 0, -stride))).astype(np.int64) - 1
    return [int(step) for step in grid[::-1] if 0 <= step < num_train_timesteps]


@dataclass(frozen=True, slots=True)
class StepCoefficients:
    """The factors of one reverse step; see `step_coefficients`."""

    signal: float
    noise: float
    next_signal: float
    direction: float
    sigma: float


def step_coefficients(alpha: float, next_alpha: float, eta: float) -> StepCoefficients:
    """The coefficients of a step from `alpha` to `next_alpha >= alpha`, with `eta` in [0, 1].

    Equation 16 of DDIM gives the variance of the new noise. Equation 12 leaves the difference
    `1 - next_alpha - variance` for the predicted direction. It is 0 at zero signal-to-noise ratio and eta 1,
    and slightly negative in floating point. Written without a difference, it is
    `(1 - next_alpha) * (1 - eta**2 + eta**2 * alpha * (1 - next_alpha) / (next_alpha * (1 - alpha)))`.
    """
    variance = eta**2 * (1 - next_alpha) / (1 - alpha) * (1 - alpha / next_alpha)
    kept = 1 - eta**2 + eta**2 * alpha * (1 - next_alpha) / (next_alpha * (1 - alpha))
    return StepCoefficients(
        signal=math.sqrt(alpha),
        noise=math.sqrt(1 - alpha),
        next_signal=math.sqrt(next_alpha),
        direction=math.sqrt((1 - next_alpha) * kept),
        sigma=math.sqrt(variance),
    )


class DynamiCrafterScheduler(SchedulerMixin, ConfigMixin):  # type: ignore[misc]  # diffusers is untyped
    """Reverse diffusion by DDIM (arXiv 2010.02502, equations 12 and 16) with optional dynamic rescale.

    Dynamic rescale: in training, the clean latents were multiplied by a factor that falls linearly from 1 to
    `rescale_base` over the first `rescale_turning_step` steps. A reverse step rescales the clean estimate
    from its own factor to that of the next step. `rescale_base=None` disables it.
    """

    order = 1
    init_noise_sigma = 1.0

    @register_to_config  # type: ignore[untyped-decorator]
    def __init__(
        self,
        num_train_timesteps: int = 1000,
        beta_start: float = 0.00085,
        beta_end: float = 0.012,
        prediction_type: PredictionType = "v_prediction",
        timestep_spacing: TimestepSpacing = "uniform_trailing",
        rescale_betas_zero_snr: bool = True,
        rescale_base: float | None = None,
        rescale_turning_step: int = 400,
    ) -> None:
        if prediction_type not in ("epsilon", "v_prediction"):
            raise ValueError(
                f"prediction_type is {prediction_type!r}; it must be 'epsilon' or 'v_prediction'"
            )
        if timestep_spacing not in ("uniform", "uniform_trailing"):
            raise ValueError(
                f"timestep_spacing is {timestep_spacing!r}; it must be 'uniform' or 'uniform_trailing'"
            )
        if prediction_type == "epsilon" and rescale_betas_zero_snr:
            raise ValueError(
                "prediction_type 'epsilon' excludes rescale_betas_zero_snr: at zero signal-to-noise ratio, "
                "epsilon does not determine the image"
            )
        alphas = cumulative_alphas(num_train_timesteps, beta_start, beta_end, rescale_betas_zero_snr)
        self.alphas_cumprod = torch.from_numpy(alphas)
        self.rescale_factors = self._rescale_factors(num_train_timesteps, rescale_base, rescale_turning_step)
        self.num_inference_steps: int | None = None
        self.timesteps = torch.arange(num_train_timesteps - 1, -1, -1)
        self._next_step: dict[int, int] = {}

    @staticmethod
    def _rescale_factors(count: int, base: float | None, turning_step: int) -> torch.Tensor | None:
        if base is None:
            return None
        falling = np.linspace(1.0, base, turning_step)
        return torch.from_numpy(np.concatenate((falling, np.full(count, base)))[:count])

    def __len__(self) -> int:
        return int(self.config.num_train_timesteps)

    def set_timesteps(self, num_inference_steps: int, device: str | torch.device | None = None) -> None:
        """Fill `timesteps` (int64, on `device`) for about `num_inference_steps` steps (see `timestep_grid`).

        Raises ValueError outside 1..num_train_timesteps.
        """
        if not 1 <= num_inference_steps <= len(self):
            raise ValueError(f"num_inference_steps is {num_inference_steps}; it must be in 1..{len(self)}")
        grid = timestep_grid(self.config.timestep_spacing, num_inference_steps, len(self))
        self.num_inference_steps = len(grid)
        self.timesteps = torch.tensor(grid, dtype=torch.int64, device=device)
        self._next_step = dict(zip(grid, [*grid[1:], -1], strict=True))

    def scale_model_input(self, sample: torch.Tensor, timestep: Any = None) -> torch.Tensor:
        """Return `sample` unchanged: DDIM does not scale it. Part of the diffusers interface."""
        del timestep
        return sample

    def step(
        self,
        model_output: torch.Tensor,
        timestep: int | torch.Tensor,
        sample: torch.Tensor,
        eta: float = 0.0,
        use_clipped_model_output: bool = False,  # noqa: ARG002 - nothing is clipped here
        generator: torch.Generator | list[torch.Generator] | None = None,
        variance_noise: torch.Tensor | None = None,
        return_dict: bool = True,
    ) -> DynamiCrafterSchedulerOutput | tuple[torch.Tensor, torch.Tensor]:
        """One reverse step from `timestep` to the next entry of the grid; arguments are DDIMScheduler's.

        `model_output`, `sample` and `variance_noise` have the same shape. `eta` scales the noise: 0 is
        deterministic DDIM; 1, which DynamiCrafter uses, has the variance of DDPM. `use_clipped_model_output`
        has no effect, because no estimate is clipped. The result has the sample's dtype. Raises ValueError
        for a time step that is not in the grid, and if both `generator` and `variance_noise` are given.
        """
        if variance_noise is not None and generator is not None:
            raise ValueError("give either a generator or variance_noise, not both")
        coefficients, rescale = self.coefficients(timestep, eta)
        work_dtype = torch.promote_types(sample.dtype, torch.float32)
        x, output = sample.to(work_dtype), model_output.to(work_dtype)
        signal, noise_level = coefficients.signal, coefficients.noise
        if self.config.prediction_type == "v_prediction":
            clean, noise = signal * x - noise_level * output, signal * output + noise_level * x
        else:
            clean, noise = (x - noise_level * output) / signal, output
        clean = clean * rescale
        previous = coefficients.next_signal * clean + coefficients.direction * noise
        if eta > 0:
            if variance_noise is None:
                variance_noise = randn_tensor(
                    sample.shape, generator=generator, device=sample.device, dtype=work_dtype
                )
            previous = previous + coefficients.sigma * variance_noise.to(work_dtype)
        previous, clean = previous.to(sample.dtype), clean.to(sample.dtype)
        return DynamiCrafterSchedulerOutput(previous, clean) if return_dict else (previous, clean)

    def coefficients(self, timestep: int | torch.Tensor, eta: float) -> tuple[StepCoefficients, float]:
        """The factors of the step from `timestep`, and the rescale of its clean estimate.

        Raises ValueError like `step`, and for `eta` outside [0, 1].
        """
        if not 0 <= eta <= 1:
            raise ValueError(f"eta is {eta}; it must be in [0, 1]")
        time, following = self._locate(timestep)
        # The last entry steps to the schedule's first time step, not to a noiseless sample.
        alpha, next_alpha = self.alphas_cumprod[[time, max(following, 0)]].tolist()
        rescale = 1.0
        if self.rescale_factors is not None and following >= 0:
            rescale = float(self.rescale_factors[following] / self.rescale_factors[time])
        return step_coefficients(alpha, next_alpha, eta), rescale

    def _locate(self, timestep: int | torch.Tensor) -> tuple[int, int]:
        if self.num_inference_steps is None:
            raise ValueError("call set_timesteps before step")
        time = int(timestep)
        if time not in self._next_step:
            raise ValueError(f"time step {time} is not one of the {self.num_inference_steps} of this grid")
        return time, self._next_step[time]
