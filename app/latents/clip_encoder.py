"""Encodes one clip to one file of latents, in memory that does not grow with the clip's length.

Owns the conversion of pictures to tensors and the choice of frames. `app.media.clips` reads the clip;
`adaptive.decoding.encoder` encodes in chunks.
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
from adaptive.stream.finite import check_finite
from adaptive.types import VaeTraits, VideoShape
from app.latents import latents_file as latents
from app.latents.latent_scale import LatentScale
from app.latents.latents_file import LatentsInfo
from app.latents.tensor_file import TensorSpec
from app.media.clips import Clip, ClipError, Geometry
from app.media.fit import FITS, GRAVITIES, Framing, cropped, frame
from app.media.video_pixels import Picture
from app.models.entries import ModelEntry

STRATEGIES = ("auto", "batched", "chunked", "per_frame")
_PICTURES_AT_A_TIME = 4

OnProgress = Callable[[int, int], None]


@dataclass(frozen=True, slots=True)
class EncodeOptions:
    """Options of an encode. None means the clip's own size, length or rate, or the chunk that fits.

    `frames_per_chunk` counts video frames. `raw` keeps the VAE's latents without normalisation. Raises
    `ValueError` for an unknown strategy, fit or gravity, or a strategy that excludes `frames_per_chunk`.
    """

    width: int | None = None
    height: int | None = None
    frames: int | None = None
    fps: Fraction | None = None
    strategy: str = "auto"
    frames_per_chunk: int | None = None
    raw: bool = False
    fit: str = "cover"
    gravity: str = "center"

    def __post_init__(self) -> None:
        for name, value, known in (("fit", self.fit, FITS), ("gravity", self.gravity, tuple(GRAVITIES))):
            if value not in known:
                raise ValueError(f"{name} must be one of {', '.join(known)}, got {value!r}")
        if self.strategy not in STRATEGIES:
            raise ValueError(f"strategy must be one of {', '.join(STRATEGIES)}, got {self.strategy!r}")
        if self.frames_per_chunk is not None and self.strategy not in ("auto", "chunked"):
            raise ValueError(f"strategy {self.strategy} excludes frames_per_chunk {self.frames_per_chunk}")


@dataclass(frozen=True, slots=True)
class EncodedClip:
    """The result of one encode. `dropped` frames at the clip's end are not in the file.

    `framing` says what was cut from the clip's pictures.
    """

    info: LatentsInfo
    plan: EncodePlan
    dropped: int
    framing: Framing


class ClipEncoder:
    """Encodes clips with one model's VAE."""

    def __init__(self, vae: Any, entry: ModelEntry, policy: Policy) -> None:
        self._vae = vae
        self._entry = entry
        self._encoder = AdaptiveEncoder(vae, policy=policy)
        self._traits: VaeTraits = traits_of(type(vae).__name__, vae.config)

    def encode(self, clip: Clip, out: Path, options: EncodeOptions, on_progress: OnProgress) -> EncodedClip:
        """Write the clip's latents to `out`. Calls `on_progress(done, total)` with latent frames.

        Raises `ClipError`, `DoesNotFit`, `NonFiniteValues`, and `ValueError` for sizes and frame counts that
        the VAE does not accept.
        """
        geometry = clip.geometry(
            options.width,
            options.height,
            multiple=self._traits.spatial_ratio,
            default=self._entry.size_multiple,
            fit=options.fit,
            gravity=options.gravity,
        )
        own = (clip.width, clip.height)
        if options.fit == "cover" and geometry.scaled == own:
            framing = cropped(own, geometry.size, options.gravity)
        else:
            framing = frame(own, geometry.size, options.fit, options.gravity)
        frames, dropped = self._frames(clip, options)
        video = VideoShape(frames, geometry.size[1], geometry.size[0])
        scale = LatentScale() if options.raw else LatentScale.of(self._vae)
        info = self._info(clip, video, options, scale)
        plan, parts = self._planned(clip, geometry, video, options)
        done = 0
        with latents.create(out, info, self._spec(video)) as file:
            for part in parts:
                normalised = scale.normalised(part)
                check_finite(normalised, "encoding", "the latents")
                file.write(latents.NAME, normalised)
                done += part.shape[2]
                del part, normalised  # else they would occupy memory while the next chunk is encoded
                on_progress(done, self._traits.latent_frames(frames))
            file.finish()
        return EncodedClip(info, plan, dropped, framing)

    def _frames(self, clip: Clip, options: EncodeOptions) -> tuple[int, int]:
        """The number of frames to encode, and of those left over at the end."""
        if options.frames is not None:
            self._traits.latent_frames(options.frames)
        available = clip.count(options.fps, options.frames)
        if options.frames is not None:
            if available < options.frames:
                message = f"{clip.path.name} has {available} frames; {options.frames} were requested"
                raise ClipError(message, "clip_too_short")
            return options.frames, 0
        offset = int(self._traits.first_frame_alone)
        used = available - (available - offset) % self._traits.temporal_ratio
        if used < 1:
            rule = f"{self._traits.temporal_ratio}k{'+1' if offset else ''}"
            message = f"{clip.path.name} has {available} frames; the VAE encodes {rule} frames"
            raise ClipError(message, "clip_too_short")
        return used, available - used

    def _planned(
        self, clip: Clip, geometry: Geometry, video: VideoShape, options: EncodeOptions
    ) -> tuple[EncodePlan, Iterator[Tensor]]:
        shape = (1, 3, video.frames, video.height, video.width)
        pictures = islice(clip.frames(geometry, options.fps), video.frames)
        parts = (_tensor(each, self._vae.dtype) for each in _grouped(pictures))
        try:
            size = self._forced_chunk(shape, options)
            plan = self._encoder.plan_stream(shape, frames_per_chunk=size)
        except UnsupportedVae:
            if options.strategy not in ("auto", "batched") or options.frames_per_chunk is not None:
                raise
            whole, plan = self._encoder.encode(torch.cat(list(parts), 2))
            return plan, iter([whole])
        return plan, self._encoder.stream(parts, shape, frames_per_chunk=size)

    def _forced_chunk(self, shape: tuple[int, ...], options: EncodeOptions) -> int | None:
        ratio, frames = self._traits.temporal_ratio, shape[2]
        if options.strategy == "batched":
            return frames
        if options.strategy == "per_frame":
            return ratio
        if options.strategy == "auto" or options.frames_per_chunk is not None:
            return options.frames_per_chunk
        sizes = [count * ratio for count in STREAMED_LATENT_FRAMES if count * ratio < frames]
        for size in sizes[:-1]:
            try:
                return self._encoder.plan_stream(shape, frames_per_chunk=size).frames_per_chunk
            except DoesNotFit:
                continue
        return sizes[-1] if sizes else ratio

    def _info(self, clip: Clip, video: VideoShape, options: EncodeOptions, scale: LatentScale) -> LatentsInfo:
        return LatentsInfo(
            model=self._entry.name,
            source=self._entry.source,
            vae_class=type(self._vae).__name__,
            clip=clip.path.name,
            frames=video.frames,
            width=video.width,
            height=video.height,
            fps=options.fps or clip.fps,
            normalised="raw" if options.raw else scale.kind,
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
    """Pictures as `[1, 3, f, H, W]` in -1..1, with the arithmetic of diffusers' processors."""
    values = torch.from_numpy(np.stack(pictures)).permute(3, 0, 1, 2)[None].float()
    return values.div_(255).mul_(2).sub_(1).to(dtype)
