"""The pipeline of `photo-pan`: photograph and prompt to a clip, with the parts of any such pipeline.

It resamples the boxes of the camera's way to frames, encodes them with the VAE, denoises latents that are
conditioned on them, and decodes these. Must not know jobs or HTTP.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKLLTXVideo, DiffusionPipeline, FlowMatchEulerDiscreteScheduler
from diffusers.pipelines.ltx.pipeline_output import LTXPipelineOutput
from diffusers.utils.torch_utils import randn_tensor
from diffusers.video_processor import VideoProcessor
from PIL import Image
from torch import Tensor

from app.pipelines.photo_pan.camera import boxes
from app.pipelines.photo_pan.denoiser import PhotoPanDenoiser
from app.pipelines.photo_pan.prompt import motion_of
from app.pipelines.photo_pan.resampling import frames


class PhotoPanPipeline(DiffusionPipeline):  # type: ignore[misc]
    """Moves a camera over a photograph."""

    model_cpu_offload_seq = "transformer->vae"

    def __init__(
        self,
        vae: AutoencoderKLLTXVideo,
        transformer: PhotoPanDenoiser,
        scheduler: FlowMatchEulerDiscreteScheduler,
    ) -> None:
        super().__init__()
        self.register_modules(vae=vae, transformer=transformer, scheduler=scheduler)
        self.vae_scale_factor = vae.spatial_compression_ratio
        self.video_processor = VideoProcessor(vae_scale_factor=self.vae_scale_factor)

    @property
    def num_timesteps(self) -> int:
        """Steps of the current call."""
        return self._num_timesteps

    @torch.no_grad()
    def __call__(
        self,
        image: Image.Image,
        prompt: str = "",
        height: int = 320,
        width: int = 512,
        num_frames: int = 33,
        num_inference_steps: int = 2,
        generator: torch.Generator | None = None,
        gravity: tuple[float, float] = (0.5, 0.5),
        output_type: str = "pil",
        return_dict: bool = True,
        callback_on_step_end: Callable[[Any, int, Any, dict[str, Any]], dict[str, Any]] | None = None,
    ) -> Any:
        """The clip of `num_frames` frames, `width` x `height` pixels; the camera moves as `prompt` says.

        `image` is the whole photograph: what of it is seen follows from the prompt, and from `gravity` where
        that leaves a choice (see `camera.boxes`). Raises ValueError for sides that are no multiples of 8.
        """
        if height % self.vae_scale_factor or width % self.vae_scale_factor:
            raise ValueError(f"sides must be multiples of {self.vae_scale_factor}, got {width}x{height}")
        device = self._execution_device
        way = boxes(image.size, (width, height), motion_of(prompt), num_frames, gravity)
        clean = self._encoded(_video(image, way, (width, height)).to(device, self.vae.dtype))
        latents = randn_tensor(clean.shape, generator=generator, device=device, dtype=torch.float32)
        self.scheduler.set_timesteps(num_inference_steps, device=device)
        steps = self.scheduler.timesteps
        self._num_timesteps = len(steps)
        with self.progress_bar(total=len(steps)) as bar:
            for index, timestep in enumerate(steps):
                joined = torch.cat([latents.to(clean.dtype), clean], dim=1)
                velocity = self.transformer(joined, timestep.expand(1), return_dict=False)[0]
                latents = self.scheduler.step(velocity, timestep, latents, return_dict=False)[0]
                if callback_on_step_end is not None:
                    latents = callback_on_step_end(self, index, timestep, {"latents": latents}).get(
                        "latents", latents
                    )
                bar.update()
        if output_type == "latent":
            video: Any = latents
        else:
            mean, std = self._statistics(latents)
            decoded = self.vae.decode((latents * std + mean).to(self.vae.dtype), return_dict=False)[0]
            video = self.video_processor.postprocess_video(decoded, output_type=output_type)
        self.maybe_free_model_hooks()
        return LTXPipelineOutput(frames=video) if return_dict else (video,)

    def _encoded(self, video: Tensor) -> Tensor:
        """The normalized latents [1, C, T, h, w] of a video [1, 3, T, H, W] in -1..1."""
        latents: Tensor = self.vae.encode(video).latent_dist.mode()
        mean, std = self._statistics(latents)
        return (latents - mean) / std

    def _statistics(self, latents: Tensor) -> tuple[Tensor, Tensor]:
        mean, std = self.vae.latents_mean, self.vae.latents_std
        return tuple(each.to(latents).view(1, -1, 1, 1, 1) for each in (mean, std))


def _video(photo: Image.Image, way: list[tuple[float, float, float, float]], size: tuple[int, int]) -> Tensor:
    """The frames as a video [1, 3, T, H, W] in -1..1."""
    pixels = np.stack([np.asarray(frame) for frame in frames(photo, way, size)])
    video = torch.from_numpy(pixels).permute(3, 0, 1, 2).float()
    return video.div_(127.5).sub_(1)[None]
