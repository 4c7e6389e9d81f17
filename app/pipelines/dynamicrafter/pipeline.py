"""The DynamiCrafter pipeline: an image and a prompt -> sixteen frames.

Owns the order of the work. Encodes as many images at a time as fit the memory that is free. Decodes all
frames in the batch of one `vae.decode` call unless `decode_chunk_size` is given, so that a caller that
captures the call can decide how many are decoded at once. Decoded frames are only reshaped and scaled
afterwards; nothing else depends on them or on their size.

Longer than 300 lines because diffusers expects a pipeline to be one class, whose call has 24 arguments.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, DiffusionPipeline
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
from transformers import CLIPTextModel, CLIPTokenizer, CLIPVisionModel

from adaptive.decoding.encoder import AdaptiveEncoder, EncodePlan
from adaptive.planning.policy import Policy
from app.pipelines.dynamicrafter.call import (
    DynamiCrafterPipelineOutput,
    Generators,
    OutputType,
    StepCallback,
    check_call,
    initial_latents,
    to_batch,
)
from app.pipelines.dynamicrafter.components import PartialConfigs
from app.pipelines.dynamicrafter.defaults import ResolutionDefaults, defaults_for
from app.pipelines.dynamicrafter.denoise_plan import (
    DenoisePlan,
    DenoiseShape,
    plan_denoise,
    traced_peaks,
)
from app.pipelines.dynamicrafter.guidance import Conditions, Guidance, conditioning_latents, predict
from app.pipelines.dynamicrafter.images import ImageInput, clip_pixels, load_images, to_output
from app.pipelines.dynamicrafter.networks.projector import DynamiCrafterImageProjector
from app.pipelines.dynamicrafter.networks.unet import DynamiCrafterUNet
from app.pipelines.dynamicrafter.scheduler import DynamiCrafterScheduler


class DynamiCrafterPipeline(DiffusionPipeline):  # type: ignore[misc]  # diffusers is untyped
    """Animates an image, or interpolates between two, as a prompt describes.

    `resolution` (256, 512 or 1024) selects the published model, whose values are the defaults of a call.
    """

    model_cpu_offload_seq = "text_encoder->image_encoder->image_projector->unet->vae"
    _callback_tensor_inputs = ("latents",)

    def __init__(
        self,
        vae: AutoencoderKL,
        text_encoder: CLIPTextModel,
        tokenizer: CLIPTokenizer,
        image_encoder: CLIPVisionModel,
        image_projector: DynamiCrafterImageProjector,
        unet: DynamiCrafterUNet,
        scheduler: DynamiCrafterScheduler,
        resolution: int = 512,
    ) -> None:
        super().__init__()
        defaults_for(resolution)
        self.register_modules(
            vae=vae,
            text_encoder=text_encoder,
            tokenizer=tokenizer,
            image_encoder=image_encoder,
            image_projector=image_projector,
            unet=unet,
            scheduler=scheduler,
        )
        self.register_to_config(resolution=resolution)
        self.vae_scale_factor = 2 ** (len(vae.config.block_out_channels) - 1)
        self._interrupt = False
        self._num_timesteps = 0
        self._guidance_passes = 1
        self._encode_policy = Policy()
        self.encode_plan: EncodePlan | None = None

    @classmethod
    def from_single_file(
        cls,
        path: str | Path,
        resolution: int,
        tokenizer: str | Path | CLIPTokenizer | None = None,
        config: PartialConfigs | None = None,
        torch_dtype: torch.dtype | Mapping[str, torch.dtype] = torch.float32,
    ) -> "DynamiCrafterPipeline":
        """Load a published checkpoint, with the arguments and errors of `load_components`."""
        from app.pipelines.dynamicrafter.checkpoint.loading import load_components

        return cls(**load_components(path, resolution, tokenizer, config, torch_dtype), resolution=resolution)

    @property
    def defaults(self) -> ResolutionDefaults:
        """The published values of this model."""
        return defaults_for(self.config.resolution)

    @property
    def num_timesteps(self) -> int:
        """Steps of the last call; with uniform spacing, may be more than requested (see `timestep_grid`)."""
        return self._num_timesteps

    @property
    def interrupt(self) -> bool:
        """Whether the denoising ends early; a callback sets `_interrupt`."""
        return self._interrupt

    def fit_denoise(
        self, budget_bytes: int, *, num_frames: int, height: int, width: int, guidance_scale: float = 7.5
    ) -> DenoisePlan:
        """Choose the fastest way to denoise videos of this shape in `budget_bytes` above the weights.

        Sets the UNet's slices, the guidance passes and the memory for encoding images; the generated video
        stays the same. The first plan for a shape traces the UNet, which takes seconds. Raises DoesNotFit if
        no option fits.
        """
        factor = self.vae_scale_factor
        shape = DenoiseShape(num_frames, height // factor, width // factor)
        guided = guidance_scale != 1
        peaks = traced_peaks(self.unet.config, shape, self.unet.dtype, guided=guided)
        plan = plan_denoise(peaks, guided=guided, budget_bytes=budget_bytes)
        self.unet.set_attention_slice(plan.rung.slices)
        self._guidance_passes = plan.rung.guidance_passes
        self._encode_policy = Policy(budget_bytes=budget_bytes, reserve_bytes=0)
        return plan

    def encode_prompt(self, prompt: str | list[str]) -> torch.Tensor:
        """Prompts -> `[B, 77, D]`: the output of the second to last text block, after the layer norm."""
        inputs = self.tokenizer(
            [prompt] if isinstance(prompt, str) else prompt,
            padding="max_length",
            max_length=self.tokenizer.model_max_length,
            truncation=True,
            return_tensors="pt",
        )
        encoded: torch.Tensor = self.text_encoder(
            inputs.input_ids.to(self._execution_device)
        ).last_hidden_state
        return encoded

    def encode_image(self, images: torch.Tensor) -> torch.Tensor:
        """Images `[B, 3, H, W]` in [-1, 1] -> the context tokens of all frames, `[B, queries, D]`."""
        encoder = self.image_encoder
        pixels = clip_pixels(images.to(self._execution_device, torch.float32), encoder.config.image_size)
        projected: torch.Tensor = self.image_projector(encoder(pixels.to(encoder.dtype)).last_hidden_state)
        return projected

    def encode_latents(
        self, images: torch.Tensor, generator: Generators = None, chunk_size: int | None = None
    ) -> torch.Tensor:
        """Images `[N, 3, H, W]` in [-1, 1] -> scaled latents `[N, 4, h, w]`, a sample of the posterior.

        Without a `chunk_size`, the free memory decides how many images are encoded at once, and `encode_plan`
        records it. Noise is drawn once for all images, so every `chunk_size` gives the same latents. Raises
        DoesNotFit if no option fits.
        """
        images = images.to(self._execution_device, self.vae.dtype)
        self.encode_plan = None
        if chunk_size is None and len(images) > 1:
            encoder = AdaptiveEncoder(self.vae, policy=self._encode_policy)
            parameters, self.encode_plan = encoder.encode(
                images.transpose(0, 1)[None], posterior="parameters"
            )
            posterior = DiagonalGaussianDistribution(parameters[0].transpose(0, 1))
        elif chunk_size is None or chunk_size >= len(images):
            posterior = self.vae.encode(images).latent_dist
        else:
            parts = [self.vae.encode(part).latent_dist.parameters for part in torch.split(images, chunk_size)]
            posterior = DiagonalGaussianDistribution(torch.cat(parts))
        latents: torch.Tensor = posterior.sample(generator).float() * self.vae.config.scaling_factor
        return latents

    def decode_latents(self, latents: torch.Tensor, chunk_size: int | None = None) -> torch.Tensor:
        """Scaled latents `[B, 4, T, h, w]` -> frames `[B, 3, T, H, W]` in the VAE's range, about [-1, 1]."""
        folded = latents.transpose(1, 2).flatten(0, 1) / self.vae.config.scaling_factor
        parts = torch.split(folded.to(self.vae.dtype), chunk_size or len(folded))
        frames = [self.vae.decode(part, return_dict=False)[0] for part in parts]
        decoded = torch.cat(frames)
        return decoded.reshape(len(latents), -1, *decoded.shape[1:]).transpose(1, 2)

    @torch.no_grad()
    def __call__(
        self,
        image: ImageInput,
        prompt: str | list[str] = "",
        negative_prompt: str | list[str] = "",
        last_image: ImageInput | None = None,
        loop: bool = False,
        num_frames: int = 16,
        height: int | None = None,
        width: int | None = None,
        num_inference_steps: int = 50,
        guidance_scale: float = 7.5,
        guidance_rescale: float | None = None,
        fs: int | None = None,
        eta: float = 1.0,
        generator: Generators = None,
        latents: torch.Tensor | None = None,
        prompt_embeds: torch.Tensor | None = None,
        negative_prompt_embeds: torch.Tensor | None = None,
        guidance_passes: int | None = None,
        encode_chunk_size: int | None = None,
        decode_chunk_size: int | None = None,
        output_type: OutputType = "pil",
        return_dict: bool = True,
        callback_on_step_end: StepCallback | None = None,
        callback_on_step_end_tensor_inputs: list[str] | None = None,
    ) -> DynamiCrafterPipelineOutput | tuple[Any]:
        """Generate one video for each prompt.

        `last_image`: interpolate between two images. `loop`: return to the first image; the last frame, which
        repeats it, is left out. `fs`: the model's motion control, a frame stride (256) or frames per second.
        `latents`: the initial noise `[B, 4, T, h, w]`. `prompt_embeds`, `negative_prompt_embeds`: results of
        `encode_prompt`, in place of prompts. `guidance_passes`: 2 runs the conditional and the unconditional
        prediction one after the other, in half the memory. `encode_chunk_size`, `decode_chunk_size`: images a
        VAE call; None means as many as fit for encoding, and all for decoding. Other arguments that are None
        take the model's published values.

        Raises ValueError for sizes that are not multiples of 64 and for arguments that exclude each other.
        """
        defaults = self.defaults
        height, width = height or defaults.height, width or defaults.width
        between = loop or last_image is not None
        check_call(height, width, num_frames, loop and last_image is not None, between, output_type)
        if fs is None:
            fs = defaults.interpolation_fs if between else defaults.fs
        rescale = defaults.guidance_rescale if guidance_rescale is None else guidance_rescale
        passes = self._guidance_passes if guidance_passes is None else guidance_passes
        guidance = Guidance(guidance_scale, rescale, passes)

        text = self.encode_prompt(prompt) if prompt_embeds is None else prompt_embeds
        uncond_text = None
        if guidance_scale != 1:
            uncond_text = negative_prompt_embeds
            if uncond_text is None:
                uncond_text = self.encode_prompt(negative_prompt)
        first = load_images(image, width, height)
        last = first if loop else None if last_image is None else load_images(last_image, width, height)
        conditions = Conditions(
            *self._contexts(text, uncond_text, first),
            self._image_latents(first, last, len(text), num_frames, generator, encode_chunk_size),
            torch.full((len(text),), fs, device=self._execution_device),
        )
        latents = initial_latents(latents, conditions.image_latents, generator)
        self.scheduler.set_timesteps(num_inference_steps, device=self._execution_device)
        latents = self._denoise(
            latents,
            conditions,
            guidance,
            {"eta": eta, "generator": generator},
            callback_on_step_end,
            tuple(callback_on_step_end_tensor_inputs or self._callback_tensor_inputs),
        )
        # Frames are decoded independently, so the repeated frame of a loop need not be decoded.
        latents = latents[:, :, :-1] if loop else latents
        frames: Any = latents
        if output_type != "latent":
            frames = to_output(self.decode_latents(latents, decode_chunk_size), output_type)
        self.maybe_free_model_hooks()
        return DynamiCrafterPipelineOutput(frames=frames) if return_dict else (frames,)

    def _denoise(
        self,
        latents: torch.Tensor,
        conditions: Conditions,
        guidance: Guidance,
        step_arguments: dict[str, Any],
        callback: StepCallback | None,
        callback_inputs: tuple[str, ...],
    ) -> torch.Tensor:
        if unknown := set(callback_inputs) - set(self._callback_tensor_inputs):
            raise ValueError(f"callbacks get only {self._callback_tensor_inputs}, not {sorted(unknown)}")
        self._interrupt = False
        timesteps = self.scheduler.timesteps
        self._num_timesteps = len(timesteps)
        with self.progress_bar(total=len(timesteps)) as progress:
            for index, timestep in enumerate(timesteps):
                if self._interrupt:
                    break
                output = predict(self.unet, latents, timestep, conditions, guidance)
                latents = self.scheduler.step(output, timestep, latents, return_dict=False, **step_arguments)[
                    0
                ]
                if callback is not None:
                    given = {"latents": latents} if callback_inputs else {}
                    latents = (callback(self, index, timestep, given) or {}).get("latents", latents)
                progress.update()
        return latents

    def _contexts(
        self, text: torch.Tensor, uncond_text: torch.Tensor | None, first: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """The conditional and unconditional context: text and image tokens `[B, tokens, D]` each.

        The unconditional one is None without guidance; its image is zero, which is mid-grey.
        """
        batch = len(text)
        context = torch.cat([text, to_batch(self.encode_image(first), batch)], dim=1)
        if uncond_text is None:
            return context, None
        blank = self.encode_image(torch.zeros_like(first[:1]))
        return context, torch.cat([to_batch(uncond_text, batch), to_batch(blank, batch)], dim=1)

    def _image_latents(
        self,
        first: torch.Tensor,
        last: torch.Tensor | None,
        batch: int,
        num_frames: int,
        generator: Generators,
        chunk_size: int | None,
    ) -> torch.Tensor:
        if last is None or last is first:
            start = end = self.encode_latents(to_batch(first, batch), generator, chunk_size)
        else:
            pair = torch.cat([to_batch(first, batch), to_batch(last, batch)])
            generators = generator * 2 if isinstance(generator, list) else generator
            start, end = self.encode_latents(pair, generators, chunk_size).chunk(2)
        return conditioning_latents(start, None if last is None else end, num_frames)
