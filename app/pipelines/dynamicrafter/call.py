"""The arguments and the output of a call of the pipeline: types and checks.

Pure functions; must not know components.
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


def to_batch(tensor: torch.Tensor, batch: int) -> torch.Tensor:
    """Repeat a single entry `batch` times. Raises `ValueError` unless there are 1 or `batch` entries."""
    if len(tensor) not in (1, batch):
        raise ValueError(f"got {len(tensor)} images or prompts for {batch} prompts: give 1 or {batch}")
    return tensor.expand(batch, *tensor.shape[1:])


def initial_latents(latents: torch.Tensor | None, like: torch.Tensor, generator: Generators) -> torch.Tensor:
    """The initial noise with the shape, dtype and device of `like`: `latents`, or drawn from `generator`.

    Raises `ValueError` if `latents` have another shape.
    """
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
    """Raise `ValueError` for the first invalid argument. `between`: the video also ends with an image."""
    if height % SIZE_MULTIPLE or width % SIZE_MULTIPLE:
        raise ValueError(f"{width}x{height}: width and height must be multiples of {SIZE_MULTIPLE}")
    if loop_and_last:
        raise ValueError("loop and last_image exclude each other: a loop ends with its first image")
    if num_frames < 1 + between:
        raise ValueError(f"num_frames is {num_frames}; it must be at least {1 + between}")
    if output_type not in get_args(OutputType):
        raise ValueError(f"output_type is {output_type!r}; it must be one of {get_args(OutputType)}")
