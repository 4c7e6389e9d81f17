"""Pictures of a video before it is decoded: a few latent frames, each decoded alone and small.

Owns: which frames are shown (first, last, and every k-th between) and their cheap decode. A picture is made
of a latent frame without its neighbours and at reduced size, so it is about what the frame will be and never
enters the result. Must not know: jobs, files, plans.
"""

import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from adaptive.device.probe import is_out_of_memory
from adaptive.families import family_of
from adaptive.stream import decode_whole
from adaptive.types import LatentShape, VaeTraits

log = logging.getLogger(__name__)

# Together the pictures take at most this share of the decode's work, counted in latent pixels and frames.
WORK_SHARE = 0.25
MOST_PICTURES = 8
# Latents are averaged over squares of these sides; a picture keeps at least so many pixels and latents.
FACTORS = (4, 2, 1)
LEAST_PIXELS, LEAST_LATENTS = 96, 4


@dataclass(frozen=True, slots=True)
class PreviewPlan:
    """Latent frames to show, in the order in which they are made, and how much smaller each is a side."""

    latent_frames: tuple[int, ...]
    factor: int
    work_share: float  # of the whole decode's work


def plan_previews(traits: VaeTraits, shape: LatentShape) -> PreviewPlan | None:
    """First, last and every k-th latent frame, as many as their share of the work allows; None where even
    two would be too much.
    """
    factor = _factor(traits, shape)
    affordable = int(WORK_SHARE * shape.frames * factor**2)
    count = min(MOST_PICTURES, affordable, shape.frames)
    if count < 2:
        return None
    spread = [round(index * (shape.frames - 1) / (count - 1)) for index in range(count)]
    return PreviewPlan((0, spread[-1], *spread[1:-1]), factor, count / (shape.frames * factor**2))


def _factor(traits: VaeTraits, shape: LatentShape) -> int:
    side = min(shape.height, shape.width)
    return next(
        factor
        for factor in FACTORS
        if factor == 1
        or (side // factor >= LEAST_LATENTS and side * traits.spatial_ratio >= factor * LEAST_PIXELS)
    )


def make_previews(
    vae: Any, latents: Tensor, plan: PreviewPlan, decode_kwargs: Mapping[str, Any]
) -> Iterator[tuple[int, Tensor]]:
    """The planned pictures of latents `[B, C, T, h, w]`: number of the video frame, and `[C, H, W]` of the
    first video in the VAE's range and on its device.

    The generators of random numbers are left as they are. Ends early, without an error, where memory runs
    out or the VAE cannot decode a frame alone.
    """
    traits = family_of(vae).traits(type(vae).__name__, vae.config)
    for latent_frame in plan.latent_frames:
        picture = _picture(vae, latents[:1, :, latent_frame : latent_frame + 1], plan.factor, decode_kwargs)
        if picture is None:
            return
        yield traits.video_frames(latent_frame) if latent_frame else 0, picture


def _picture(vae: Any, latent: Tensor, factor: int, decode_kwargs: Mapping[str, Any]) -> Tensor | None:
    """One picture, or None after a failure: what it held is free again by then."""
    small = torch.nn.functional.avg_pool3d(latent.float(), (1, factor, factor)).to(latent.dtype)
    devices = [vae.device] if vae.device.type == "cuda" else []
    try:
        with torch.random.fork_rng(devices=devices):
            frames = decode_whole(vae, small, **_of_first(decode_kwargs))
    except torch.AcceleratorError:
        raise
    except Exception as error:
        if not is_out_of_memory(error):
            log.warning("no_previews vae=%s reason=%s", type(vae).__name__, error)
        return None
    return frames[0, :, -1]


def _of_first(decode_kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of the first video of a batch."""
    return {
        name: value[:1] if isinstance(value, Tensor) and value.ndim else value
        for name, value in decode_kwargs.items()
    }
