"""Stage by stage against tensors that the original implementation computed."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
from golden_case import Golden

from app.pipelines.dynamicrafter.guidance import conditioning_latents
from app.pipelines.dynamicrafter.images import clip_pixels, load_images

TOLERANCE = 1e-4

Stage = Callable[[Golden], torch.Tensor]


def _image(golden: Golden) -> torch.Tensor:
    return load_images(golden.inputs["images"][0].numpy(), golden.run["width"], golden.run["height"])


def _clip(golden: Golden, image: torch.Tensor) -> torch.Tensor:
    return golden.pipeline.image_encoder(clip_pixels(image, 224)).last_hidden_state


def _unet(golden: Golden, with_fs: bool) -> torch.Tensor:
    batch = 2 if with_fs else 1
    inputs = [golden.inputs[name][:batch] for name in ("unet_sample", "unet_timestep", "unet_context")]
    return golden.pipeline.unet(*inputs, fs=golden.inputs["unet_fs"] if with_fs else None).sample


def _posterior(golden: Golden) -> DiagonalGaussianDistribution:
    return golden.pipeline.vae.encode(_image(golden)).latent_dist


def _image_latents(golden: Golden, noise: torch.Tensor | float) -> torch.Tensor:
    posterior = _posterior(golden)
    latents = (posterior.mean + posterior.std * noise) * golden.pipeline.vae.config.scaling_factor
    return conditioning_latents(latents, None, golden.run["num_frames"])


STAGES: dict[str, Stage] = {
    "unet_out": lambda g: _unet(g, with_fs=True),
    "unet_out_default_fs": lambda g: _unet(g, with_fs=False),
    "resampler_out": lambda g: g.pipeline.image_projector(g.inputs["resampler_in"]),
    "text_context": lambda g: g.pipeline.encode_prompt(g.run["prompt"]),
    "text_context_uncond": lambda g: g.pipeline.encode_prompt(g.run["negative_prompt"]),
    "clip_vision": lambda g: _clip(g, _image(g)),
    "clip_vision_zero_image": lambda g: _clip(g, torch.zeros_like(_image(g))),
    "clip_vision_large": lambda g: _clip(g, load_images(g.inputs["image_large"].numpy(), 512, 320)),
    "image_context": lambda g: g.pipeline.encode_image(_image(g)),
    "image_context_uncond": lambda g: g.pipeline.encode_image(torch.zeros_like(_image(g))),
    "vae_mean": lambda g: _posterior(g).mean,
    "vae_logvar": lambda g: _posterior(g).logvar,
    "image_latents": lambda g: _image_latents(g, g.inputs["posterior_noise"]),
    "image_latents_mode": lambda g: _image_latents(g, 0.0),
    "vae_decode_out": lambda g: g.pipeline.decode_latents(g.inputs["vae_decode_in"][:, :, None])[:, :, 0],
    "alphas_cumprod": lambda g: g.pipeline.scheduler.alphas_cumprod,
}


@pytest.mark.parametrize("name", STAGES)
@torch.no_grad()
def test_every_stage_equals_the_original(golden: Golden, name: str) -> None:
    found = STAGES[name](golden)
    assert found.shape == golden.expected[name].shape
    assert (found.double() - golden.expected[name].double()).abs().max() <= TOLERANCE


def test_the_prompt_becomes_the_original_tokens(golden: Golden) -> None:
    tokenizer = golden.pipeline.tokenizer
    assert tokenizer.get_vocab() == golden.case["tokenizer"]["vocab"]
    for prompt, name in (("prompt", "input_ids"), ("negative_prompt", "input_ids_uncond")):
        found = tokenizer(
            golden.run[prompt], padding="max_length", max_length=77, return_tensors="pt"
        ).input_ids
        assert torch.equal(found, golden.inputs[name])


def test_time_steps_are_the_original_ones(golden: Golden) -> None:
    scheduler = golden.pipeline.scheduler
    for count, expected in golden.case["timesteps_by_num_steps"].items():
        scheduler.set_timesteps(int(count))
        assert scheduler.timesteps.tolist() == expected


@pytest.fixture
def replayed(golden: Golden, monkeypatch: pytest.MonkeyPatch) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """The original's noise in place of drawn noise; (sample, clean estimate) after each step."""
    steps: list[tuple[torch.Tensor, torch.Tensor]] = []
    step = golden.pipeline.scheduler.step

    def replay(*args: Any, generator: Any = None, **kwargs: Any) -> Any:
        assert generator is None
        result = step(*args, variance_noise=golden.inputs["step_noise"][len(steps)][None], **kwargs)
        steps.append(result)
        return result

    monkeypatch.setattr(golden.pipeline.scheduler, "step", replay)
    return steps


def _generate(golden: Golden, **arguments: Any) -> Any:
    run = golden.run
    named = ("prompt", "negative_prompt", "height", "width", "num_frames", "num_inference_steps", "fs", "eta")
    guidance = ("guidance_scale", "guidance_rescale")
    return golden.pipeline(
        golden.inputs["images"][0].numpy(),
        latents=golden.inputs["x_T"],
        **{name: run[name] for name in (*named, *guidance)},
        **arguments,
    ).frames


def test_the_whole_run_equals_the_original(
    golden: Golden, replayed: list[tuple[torch.Tensor, torch.Tensor]], monkeypatch: pytest.MonkeyPatch
) -> None:
    noise = golden.inputs["posterior_noise"]
    monkeypatch.setattr(
        DiagonalGaussianDistribution, "sample", lambda self, _=None: self.mean + self.std * noise
    )
    frames = np.stack([np.asarray(frame) for frame in _generate(golden)[0]])

    samples = torch.cat([sample for sample, _ in replayed])
    assert (samples - golden.expected["latents_per_step"]).abs().max() <= TOLERANCE
    assert (replayed[0][1] - golden.expected["pred_x0_first_step"]).abs().max() <= TOLERANCE
    assert (samples[-1:] - golden.expected["final_latents"]).abs().max() <= TOLERANCE
    with torch.no_grad():
        video = golden.pipeline.decode_latents(samples[-1:])
    assert (video - golden.expected["video"]).abs().max() <= TOLERANCE

    difference = np.abs(frames.astype(int) - golden.expected["video_uint8"].numpy().astype(int))
    assert difference.max() <= 1
    assert (difference > 0).mean() <= 1e-3


def test_a_run_from_the_mean_image_latents_equals_the_original(
    golden: Golden, replayed: list[tuple[torch.Tensor, torch.Tensor]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(DiagonalGaussianDistribution, "sample", lambda self, _=None: self.mean)
    latents = _generate(golden, output_type="latent", guidance_passes=2)
    assert len(replayed) == golden.run["num_inference_steps"]
    assert (latents - golden.expected["final_latents_mode"]).abs().max() <= TOLERANCE
