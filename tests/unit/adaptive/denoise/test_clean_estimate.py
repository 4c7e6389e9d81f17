"""The clean estimate of each step of real pipelines, and how its latents lie compared with those decoded."""

from collections.abc import Mapping
from typing import Any

import denoise_cases
import pytest
import torch

from adaptive.denoise.preview.clean_estimate import NoEstimate, clean_estimate
from adaptive.denoise.preview.latent_layout import find_layout
from adaptive.denoise.watch import CallNext, DenoiseHandler, scheduler_name, watch
from adaptive.families import family_of
from adaptive.pipelines.capture import capture
from adaptive.pipelines.vae_method import recorded_arguments
from adaptive.types import LatentShape

pytestmark = pytest.mark.filterwarnings("ignore:.*deprecated", "ignore:__array__ implementation")
STEPS = 3


class Steps(DenoiseHandler):
    """The whole estimates after each step, and the last result, by scheduler."""

    def __init__(self, pipe: Any) -> None:
        self.pipe = pipe
        self.estimates: dict[str, list[torch.Tensor]] = {}
        self.results: dict[str, torch.Tensor] = {}

    def around_step(
        self, call_next: CallNext, scheduler: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> Any:
        result = call_next(*args, **kwargs)
        name = scheduler_name(self.pipe, scheduler)
        estimate = clean_estimate(scheduler, args, kwargs, result)
        self.estimates.setdefault(name, []).append(estimate.part(torch.clone))
        self.results[name] = (result[0] if isinstance(result, tuple) else result.prev_sample).clone()
        return result


def run(name: str) -> tuple[Steps, torch.Tensor]:
    """The steps of the case, and the latents that its pipeline gives to its VAE, `[1, C, T, h, w]`."""
    pipe = denoise_cases.built(name)
    steps = Steps(pipe)
    generator = torch.Generator().manual_seed(denoise_cases.SEED)
    with capture(pipe) as calls, watch(pipe, [steps]):
        denoise_cases.called(pipe, name, generator, STEPS, lambda: None)
    family = family_of(pipe.vae)
    videos = [family.as_video(call.latents, recorded_arguments(type(pipe.vae), call)) for call in calls]
    return steps, torch.cat(videos, dim=2)


# Guidance and a second image change nothing of what a scheduler does.
NAMES = sorted(
    set(denoise_cases.CASES) - {"dynamicrafter-two-pass", "dynamicrafter-interpolation", "wan21-unipc"}
)
# The last noise level of these is that of the first training step, not zero: a part of the noise stays.
NOT_TO_ZERO = {"i2vgen-xl": 0.1, "dynamicrafter": 0.1}


@pytest.mark.parametrize("name", NAMES)
def test_the_estimate_of_the_last_step_is_its_result_as_the_vae_gets_it(name: str) -> None:
    steps, decoded = run(name)
    for scheduler, result in steps.results.items():
        estimates = steps.estimates[scheduler]
        assert len(estimates) >= STEPS
        off = (estimates[-1] - result).abs().max() / result.abs().max()
        assert off < NOT_TO_ZERO.get(name, 1e-5), name
        if name != "photo-pan":  # its denoiser knows the result from its first step on
            apart = (estimates[0] - result).abs().max() / result.abs().max()
            assert apart > 1e-3, "it is no copy of the result"
    layout = find_layout(steps.results, decoded)
    assert layout is not None
    shape = LatentShape(*decoded.shape)
    frames = list(layout.frames(shape))
    assert shape.frames - len(frames) <= 1
    taken = layout.normalised(layout.take(steps.results[layout.scheduler], shape, frames))
    expected = decoded[0, :, frames].transpose(0, 1)
    assert (taken - expected).abs().max() < 1e-3 * expected.abs().max()


def test_a_scheduler_that_is_not_known_gives_no_estimate() -> None:
    from diffusers import LCMScheduler

    scheduler = LCMScheduler()
    scheduler.set_timesteps(4)
    latents = torch.randn(1, 4, 2, 2)
    result = scheduler.step(latents, scheduler.timesteps[0], latents, return_dict=False)
    with pytest.raises(NoEstimate, match="LCMScheduler"):
        clean_estimate(scheduler, (latents, scheduler.timesteps[0], latents), {}, result)


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
@pytest.mark.parametrize("name", ["DDIMScheduler", "EulerDiscreteScheduler", "DPMSolverMultistepScheduler"])
def test_the_estimate_is_the_clean_one_for_all_that_a_network_may_predict(name: str, prediction: str) -> None:
    """Noise is added to known latents; a network that predicts right leads back to them at every step."""
    import diffusers

    scheduler = getattr(diffusers, name)(prediction_type=prediction)
    scheduler.set_timesteps(5)
    if name == "DDIMScheduler":
        scheduler.register_to_config(clip_sample=False)
    clean, noise = torch.randn(2, 1, 4, 2, 3, generator=torch.Generator().manual_seed(1))
    for number, timestep in enumerate(scheduler.timesteps):
        noisy = scheduler.add_noise(clean, noise, timestep[None])
        if name == "DDIMScheduler":
            spread = (1 - scheduler.alphas_cumprod[timestep]) ** 0.5
        else:  # `sigmas` are ratios of noise to signal
            spread = scheduler.sigmas[number] / (scheduler.sigmas[number] ** 2 + 1) ** 0.5
        signal = (1 - spread**2) ** 0.5
        right = {"epsilon": noise, "sample": clean, "v_prediction": signal * noise - spread * clean}[
            prediction
        ]
        result = scheduler.step(right, timestep, noisy, return_dict=False)
        estimate = clean_estimate(scheduler, (right, timestep, noisy), {}, result[:1])
        assert torch.allclose(estimate.part(torch.clone), clean, atol=1e-3), timestep
