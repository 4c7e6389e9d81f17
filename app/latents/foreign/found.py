"""The values that readers of foreign latents share: what was found, and the check of it."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from adaptive.stream.finite import count_nonfinite
from app.latents.foreign.rejected import LatentsRejected
from app.models.entries import ModelEntry
from app.models.files.stored import WeightsHeader

# Far above any clip: an hour of LTX at 768x512 has 2 GB.
MAX_BYTES = 4 * 2**30


@dataclass(frozen=True, slots=True)
class Found:
    """Latents as a file has them, in any of the layouts that `app.latents.foreign.layout` knows.

    `normalised` says for a model whether the latents are as the model denoises them (True) or as its VAE
    makes them (False); None: nobody can tell. `assumed`: this is how such files usually are, and the file
    does not say it. `frames_first` says for a model and a number of dimensions whether frames may come before
    channels. `vae_class` is the VAE's, if the file names it.
    """

    format: str
    latents: Tensor
    normalised: Callable[[ModelEntry], bool | None]
    assumed: bool = False
    frames_first: Callable[[ModelEntry, int], bool] = lambda _entry, _dimensions: False
    vae_class: str | None = None
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class FileFormat:
    """One format: its reader returns None for a file of another format. `start`: the file's first bytes; None
    for safetensors files.
    """

    read: Callable[[Path, WeightsHeader | None], Found | None]
    start: bytes | None = None


# Pipelines that keep frames before channels: `[B, F, C, h, w]`.
_FRAMES_FIRST = ("CogVideoX", "StableVideoDiffusion")


def as_pipelines_do(entry: ModelEntry, _dimensions: int) -> bool:
    """Whether the model's pipeline keeps frames before channels, as a file of its latents then has them."""
    return entry.pipeline.startswith(_FRAMES_FIRST)


def checked(latents: Tensor, name: str) -> Tensor:
    """The tensor if it can be latents. Raises `LatentsRejected`."""
    if not latents.is_floating_point() or latents.layout is not torch.strided or latents.device.type != "cpu":
        kind = f"{str(latents.dtype).removeprefix('torch.')} on {latents.device}"
        raise LatentsRejected("not_latents", f"{name} is {kind}: latents are dense floating-point numbers")
    shape = list(latents.shape)
    if not latents.numel() or not 2 <= latents.ndim <= 5:
        raise LatentsRejected("not_latents", f"{name} has shape {shape}: latents have 2 to 5 dimensions")
    if latents.numel() * 4 > MAX_BYTES:
        raise LatentsRejected(
            "latents_too_large", f"{name} has shape {shape}, above the limit of {MAX_BYTES:,} bytes"
        )
    # A tensor of few stored numbers may claim any shape.
    if latents.numel() * latents.element_size() > latents.untyped_storage().nbytes():
        raise LatentsRejected("damaged_file", f"{name} has shape {shape}, but fewer numbers are in the file")
    values = latents.detach().to(torch.float32)
    if bad := count_nonfinite(values):
        raise LatentsRejected(
            "latents_not_finite",
            f"{bad:,} of {values.numel():,} values of {name} are not finite: whatever made them failed",
        )
    return values
