"""One clip to one file of latents, in memory that does not grow with the clip's length.

Owns the way from pictures to tensors, and the choice of frames. Reading is the clip's business, chunks are
the library's (see `adaptive.decoding.encoder`).
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from adaptive.decoding.encoder import STREAMED_LATENT_FRAMES, AdaptiveEncoder, EncodePlan
from adaptive.errors import DoesNotFit, UnsupportedVae
from adaptive.families import traits_of
from adaptive.planning.planner import Policy
from adaptive.types import VaeTraits, VideoShape
from app.latents import latents_file as latents
from app.latents.latent_scale import LatentScale
from app.latents.latents_file import LatentsInfo
from app.latents.tensor_file import TensorSpec
from app.media.clips import Clip, ClipError, Geometry, Picture
from app.models.entries import ModelEntry

STRATEGIES = ("auto", "batched", "chunked", "per_frame")
_PICTURES_AT_A_TIME = 4

OnProgress = Callable[[int, int], None]


@dataclass(frozen=True, slots=True)
class EncodeOptions:
    """What the user wants of every clip; None is the clip's, or the memory's, own.

    `frames_per_chunk` counts video frames.
    """

    width: int | None = None
    height: int | None = None
    frames: int | None = None
    fps: Fraction | None = None
    strategy: str = "auto"
    frames_per_chunk: int | None = None
    raw: bool = False

    def __post_init__(self) -> None:
        if self.strategy not in STRATEGIES:
            raise ValueError(f"strategy must be one of {', '.join(STRATEGIES)}, got {self.strategy!r}")
        if self.frames_per_chunk is not None and self.strategy not in ("auto", "chunked"):
            raise ValueError(f"strategy {self.strategy} excludes frames_per_chunk {self.frames_per_chunk}")


@dataclass(frozen=True, slots=True)
class EncodedClip:
    """What became of a clip: `dropped` of its frames are not in the file."""

    info: LatentsInfo
    plan: EncodePlan
    dropped: int


class ClipEncoder:
    """Encodes clips with one model's VAE."""

    def __init__(self, vae: Any, entry: ModelEntry, policy: Policy) -> None:
        self._vae = vae
        self._entry = entry
        self._encoder = AdaptiveEncoder(vae, policy=policy)
        self._traits: VaeTraits = traits_of(type(vae).__name__, vae.config)

    def encode(self, clip: Clip, out: Path, wishes: EncodeOptions, on_progress: OnProgress) -> EncodedClip:
        """Write the clip's latents to `out`. `on_progress` gets latent frames done and all.

        Raises `ClipError`, `ValueError` for sizes and frame counts that the VAE cannot take, `DoesNotFit`.
        """
        geometry = clip.geometry(
            wishes.width,
            wishes.height,
            multiple=self._traits.spatial_ratio,
            default=self._entry.size_multiple,
        )
        frames, dropped = self._frames(clip, wishes)
        video = VideoShape(frames, geometry.size[1], geometry.size[0])
        scale = LatentScale() if wishes.raw else LatentScale.of(self._vae)
        info = self._info(clip, video, wishes, scale)
        plan, parts = self._planned(clip, geometry, video, wishes)
        done = 0
        with latents.create(out, info, self._spec(video)) as file:
            for part in parts:
                file.write(latents.NAME, scale.normalised(part))
                done += part.shape[2]
                del part  # or it would stay alive through the next step
                on_progress(done, self._traits.latent_frames(frames))
            file.finish()
        return EncodedClip(info, plan, dropped)

    def _frames(self, clip: Clip, wishes: EncodeOptions) -> tuple[int, int]:
        """Frames to encode, and those left over at the end."""
        if wishes.frames is not None:
            self._traits.latent_frames(wishes.frames)
        there = clip.count(wishes.fps, wishes.frames)
        if wishes.frames is not None:
            if there < wishes.frames:
                raise ClipError(f"{clip.path.name} has {there} frames, {wishes.frames} are wanted")
            return wishes.frames, 0
        offset = int(self._traits.first_frame_alone)
        used = there - (there - offset) % self._traits.temporal_ratio
        if used < 1:
            rule = f"{self._traits.temporal_ratio}k{'+1' if offset else ''}"
            raise ClipError(f"{clip.path.name} has {there} frames, the VAE encodes {rule}")
        return used, there - used

    def _planned(
        self, clip: Clip, geometry: Geometry, video: VideoShape, wishes: EncodeOptions
    ) -> tuple[EncodePlan, Iterator[Tensor]]:
        shape = (1, 3, video.frames, video.height, video.width)
        pictures = islice(clip.frames(geometry, wishes.fps), video.frames)
        parts = (_tensor(each, self._vae.dtype) for each in _grouped(pictures))
        try:
            size = self._forced(shape, wishes)
            plan = self._encoder.plan_stream(shape, frames_per_chunk=size)
        except UnsupportedVae:
            if wishes.strategy not in ("auto", "batched") or wishes.frames_per_chunk is not None:
                raise
            whole, plan = self._encoder.encode(torch.cat(list(parts), 2))
            return plan, iter([whole])
        return plan, self._encoder.stream(parts, shape, frames_per_chunk=size)

    def _forced(self, shape: tuple[int, ...], wishes: EncodeOptions) -> int | None:
        ratio, frames = self._traits.temporal_ratio, shape[2]
        if wishes.strategy == "batched":
            return frames
        if wishes.strategy == "per_frame":
            return ratio
        if wishes.strategy == "auto" or wishes.frames_per_chunk is not None:
            return wishes.frames_per_chunk
        sizes = [count * ratio for count in STREAMED_LATENT_FRAMES if count * ratio < frames]
        for size in sizes[:-1]:
            try:
                return self._encoder.plan_stream(shape, frames_per_chunk=size).frames_per_chunk
            except DoesNotFit:
                continue
        return sizes[-1] if sizes else ratio

    def _info(self, clip: Clip, video: VideoShape, wishes: EncodeOptions, scale: LatentScale) -> LatentsInfo:
        return LatentsInfo(
            model=self._entry.name,
            source=self._entry.source,
            vae_class=type(self._vae).__name__,
            clip=clip.path.name,
            frames=video.frames,
            width=video.width,
            height=video.height,
            fps=wishes.fps or clip.fps,
            normalised="raw" if wishes.raw else scale.kind,
            scale=scale,
        )

    def _spec(self, video: VideoShape) -> TensorSpec:
        shape = self._traits.latent_shape(video)
        sides = (shape.batch, shape.channels, shape.frames, shape.height, shape.width)
        return TensorSpec(sides, self._vae.dtype)


def _grouped(pictures: Iterator[Picture]) -> Iterator[list[Picture]]:
    while group := list(islice(pictures, _PICTURES_AT_A_TIME)):
        yield group


def _tensor(pictures: list[Picture], dtype: torch.dtype) -> Tensor:
    """`[1, 3, f, H, W]` in -1..1, as diffusers' processors make it of pictures."""
    values = torch.from_numpy(np.stack(pictures)).permute(3, 0, 1, 2)[None].float()
    return values.div_(255).mul_(2).sub_(1).to(dtype)
