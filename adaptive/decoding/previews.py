"""Previews of a video before it is decoded: a few latent frames, each decoded alone and at reduced size.

Owns the choice of frames (first, last, and every k-th between) and their cheap decode. A preview is decoded
without the neighbouring frames, so it only resembles the final frame and never enters the result. This module
does not know jobs, files or decode plans.
"""

import logging
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from adaptive.device.accelerator import randomness_kept
from adaptive.device.out_of_memory import is_out_of_memory
from adaptive.device.probe import synchronized_seconds
from adaptive.families import family_of
from adaptive.memory.speed import SpeedModel
from adaptive.stream import decode_whole
from adaptive.stream.offload import execution_device
from adaptive.types import LatentShape, VaeTraits

log = logging.getLogger(__name__)

# Together the pictures take at most this share of the decode's work, counted in latent pixels and frames, and
# of its predicted time: each pass has a fixed cost, so small pictures take longer than their share of pixels.
WORK_SHARE = 0.25
TIME_SHARE = 0.25
LEAST_SECONDS = 0.5  # pictures may take this long in any case
MOST_PICTURES = 8
# Latents are averaged over squares of these sides. A picture keeps at least this many pixels and latents a
# side.
FACTORS = (4, 2, 1)
LEAST_PIXELS, LEAST_LATENTS = 96, 4


@dataclass(frozen=True, slots=True)
class PreviewPlan:
    """Latent frames to show, in the order of decoding, and the factor by which each side is reduced."""

    latent_frames: tuple[int, ...]
    factor: int
    work_share: float  # of the whole decode's work
    limit_seconds: float = LEAST_SECONDS  # of all pictures together


def plan_previews(
    traits: VaeTraits, shape: LatentShape, speed: SpeedModel | None = None, frames_per_chunk: int = 1
) -> PreviewPlan | None:
    """The first, the last and every k-th latent frame, as many as their shares of the decode's work and time
    allow.

    None where even two pictures are too much work, or one takes too long. `speed` predicts the seconds of a
    decode in chunks of `frames_per_chunk` latent frames; without it all pictures together may take
    `LEAST_SECONDS`.
    """
    factor = _factor(traits, shape)
    count = min(MOST_PICTURES, int(WORK_SHARE * shape.frames * factor**2), shape.frames)
    if count < 2:
        return None
    limit_seconds = LEAST_SECONDS
    if speed is not None:
        limit_seconds = max(limit_seconds, TIME_SHARE * speed.seconds(shape, frames_per_chunk))
        height, width = shape.height // factor, shape.width // factor
        picture_seconds = speed.seconds(LatentShape(1, shape.channels, 1, height, width), 1)
        count = min(count, int(limit_seconds / picture_seconds))
    if count < 1:
        return None
    spread = [round(index * (shape.frames - 1) / max(1, count - 1)) for index in range(count)]
    latent_frames = tuple(dict.fromkeys((0, spread[-1], *spread[1:-1])))
    return PreviewPlan(latent_frames, factor, count / (shape.frames * factor**2), limit_seconds)


def _factor(traits: VaeTraits, shape: LatentShape) -> int:
    side = min(shape.height, shape.width)
    return next(
        factor
        for factor in FACTORS
        if factor == 1
        or (side // factor >= LEAST_LATENTS and side * traits.spatial_ratio >= factor * LEAST_PIXELS)
    )


def make_previews(
    vae: Any,
    latents: Tensor,
    plan: PreviewPlan,
    decode_kwargs: Mapping[str, Any],
    *,
    clock: Callable[[], float] | None = None,
) -> Iterator[tuple[int, Tensor]]:
    """Decode the planned pictures of latents `[B, C, T, h, w]`, and yield them with the number of the video
    frame.

    A picture is `[C, H, W]` of the first video, in the VAE's range and on its device. The states of the
    random generators are restored. Ends early, without an error, where memory runs out, where the VAE cannot
    decode a frame alone, or where another picture that takes as long as the slowest so far would end after
    the plan's `limit_seconds`. The caller's time with each picture counts. `clock` returns seconds.
    """
    traits = family_of(vae).traits(type(vae).__name__, vae.config)
    now = clock or partial(synchronized_seconds, execution_device(vae))
    started, slowest = now(), 0.0
    for latent_frame in plan.latent_frames:
        begun = now()
        if begun - started + slowest > plan.limit_seconds:
            return
        picture = _picture(vae, latents[:1, :, latent_frame : latent_frame + 1], plan.factor, decode_kwargs)
        if picture is None:
            return
        yield traits.video_frames(latent_frame) if latent_frame else 0, picture
        slowest = max(slowest, now() - begun)


def _picture(vae: Any, latent: Tensor, factor: int, decode_kwargs: Mapping[str, Any]) -> Tensor | None:
    """One picture, or None after a failure; the failed decode's tensors are released before this returns."""
    try:
        small = torch.nn.functional.avg_pool3d(latent.float(), (1, factor, factor)).to(latent.dtype)
        with randomness_kept(execution_device(vae)):
            frames = decode_whole(vae, small, **_of_first_video(decode_kwargs))
    except torch.AcceleratorError:
        raise
    except Exception as error:
        if not is_out_of_memory(error):
            log.warning("previews_unavailable vae=%s reason=%s", type(vae).__name__, error)
        return None
    return frames[0, :, -1]


def _of_first_video(decode_kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments for the first video of a batch."""
    return {
        name: value[:1] if isinstance(value, Tensor) and value.ndim else value
        for name, value in decode_kwargs.items()
    }
