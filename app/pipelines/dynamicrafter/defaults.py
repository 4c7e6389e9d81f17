"""The published values of the three DynamiCrafter models.

Source: the inference configurations and run scripts of the DynamiCrafter release (Apache-2.0). Must not
import torch: the service's model list repeats this table.
"""

from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

PredictionType = Literal["epsilon", "v_prediction"]
TimestepSpacing = Literal["uniform", "uniform_trailing"]

SIZE_MULTIPLE = 64
"""Width and height must be a multiple of this: 8 for the VAE times 8 for the three down-samplers of the
UNet.
"""


@dataclass(frozen=True, slots=True)
class ResolutionDefaults:
    """The values that one published model was trained with and runs with.

    `fs` is the model's motion control. It is a frame *stride* for the 256 model (larger means more motion)
    and *frames per second* for the others (smaller means more motion). `interpolation_fs` is used instead
    when a last frame is given or the video loops.
    """

    resolution: int
    width: int
    height: int
    prediction_type: PredictionType
    rescale_betas_zero_snr: bool
    rescale_base: float | None
    """The last factor of the dynamic rescale of the predicted clean latents; None if the model has none."""
    timestep_spacing: TimestepSpacing
    guidance_rescale: float
    fs: int
    fs_meaning: Literal["stride", "fps"]
    fs_recommended: tuple[int, int]
    interpolation_fs: int
    learnable_image_scale: bool
    per_frame_vae: bool
    """The release's setting `perframe_ae`. This pipeline does not use it: free memory decides instead."""
    num_frames: int = 16
    num_inference_steps: int = 50
    guidance_scale: float = 7.5
    eta: float = 1.0
    output_fps: int = 8


DEFAULTS: MappingProxyType[int, ResolutionDefaults] = MappingProxyType(
    {
        256: ResolutionDefaults(
            resolution=256,
            width=256,
            height=256,
            prediction_type="epsilon",
            rescale_betas_zero_snr=False,
            rescale_base=None,
            timestep_spacing="uniform",
            guidance_rescale=0.0,
            fs=3,
            fs_meaning="stride",
            fs_recommended=(1, 6),
            interpolation_fs=3,
            learnable_image_scale=True,
            per_frame_vae=False,
        ),
        512: ResolutionDefaults(
            resolution=512,
            width=512,
            height=320,
            prediction_type="v_prediction",
            rescale_betas_zero_snr=True,
            rescale_base=0.7,
            timestep_spacing="uniform_trailing",
            guidance_rescale=0.7,
            fs=24,
            fs_meaning="fps",
            fs_recommended=(15, 30),
            interpolation_fs=5,
            learnable_image_scale=False,
            per_frame_vae=True,
        ),
        1024: ResolutionDefaults(
            resolution=1024,
            width=1024,
            height=576,
            prediction_type="v_prediction",
            rescale_betas_zero_snr=True,
            rescale_base=0.3,
            timestep_spacing="uniform_trailing",
            guidance_rescale=0.7,
            fs=10,
            fs_meaning="fps",
            fs_recommended=(5, 15),
            interpolation_fs=10,
            learnable_image_scale=False,
            per_frame_vae=True,
        ),
    }
)


def defaults_for(resolution: int) -> ResolutionDefaults:
    """The published values for `resolution` (256, 512 or 1024). Raises ValueError for any other."""
    try:
        return DEFAULTS[resolution]
    except KeyError:
        known = ", ".join(str(known) for known in DEFAULTS)
        raise ValueError(f"no DynamiCrafter model of resolution {resolution}; use one of {known}") from None
