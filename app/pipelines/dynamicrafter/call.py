"""What goes into and comes out of a call of the pipeline: types, checks, the output.

Pure. Knows no components.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt
import torch
from diffusers.utils import BaseOutput
from diffusers.utils.torch_utils import randn_tensor
from PIL import Image

from app.pipelines.dynamicrafter.defaults import SIZE_MULTIPLE

Generators = torch.Generator | list[torch.Generator] | None
StepCallback = Callable[[Any, int, torch.Tensor, dict[str, Any]], dict[str, Any]]
OutputType = Literal["pil", "np", "pt", "latent"]


@dataclass
class DynamiCrafterPipelineOutput(BaseOutput):  # type: ignore[misc]  # diffusers is untyped
    """`frames` by output type: lists of PIL images ("pil"), `[B, T, H, W, 3]` ("np") or `[B, T, 3, H, W]`
    ("pt") in [0, 1], or the scaled latents `[B, 4, T, h, w]` ("latent").
    """

    frames: list[list[Image.Image]] | npt.NDArray[np.float32] | torch.Tensor


def spread(tensor: torch.Tensor, batch: int) -> torch.Tensor:
    """One entry for each of `batch`, where there is only one for all."""
    if len(tensor) not in (1, batch):
        raise ValueError(f"{len(tensor)} images or prompts do not go with {batch} prompts")
    return tensor.expand(batch, *tensor.shape[1:])


def initial_latents(latents: torch.Tensor | None, like: torch.Tensor, generator: Generators) -> torch.Tensor:
    """The noise that denoising starts from, drawn unless given, of the shape, dtype and device of `like`."""
    if latents is None:
        drawn: torch.Tensor = randn_tensor(
            like.shape, generator=generator, device=like.device, dtype=like.dtype
        )
        return drawn
    if latents.shape != like.shape:
        raise ValueError(f"latents are {tuple(latents.shape)}; this call needs {tuple(like.shape)}")
    return latents.to(like.device, like.dtype)


def check_call(
    height: int, width: int, num_frames: int, loop_and_last: bool, between: bool, output_type: str
) -> None:
    """Raises ValueError naming the first argument of a call that cannot be met."""
    if height % SIZE_MULTIPLE or width % SIZE_MULTIPLE:
        raise ValueError(f"{width}x{height}: width and height must be multiples of {SIZE_MULTIPLE}")
    if loop_and_last:
        raise ValueError("a loop ends where it began: loop and last_image do not go together")
    if num_frames < 1 + between:
        raise ValueError(f"num_frames is {num_frames}; it must be at least {1 + between}")
    if output_type not in get_args(OutputType):
        raise ValueError(f"output_type is {output_type!r}; it must be one of {get_args(OutputType)}")
