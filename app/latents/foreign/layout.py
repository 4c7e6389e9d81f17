"""Brings foreign latents into the layout and the scale of a model's VAE, or says what would work.

Layouts: `[B, C, T, h, w]`, `[B, T, C, h, w]`, the same without `B`, one picture `[C, h, w]`, and packed
`[B, T*h*w, C]`, whose sides must be given.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from adaptive.families import family_of, traits_of
from adaptive.pipelines.recorded_call import RecordedClip, RecordedDecode
from adaptive.types import VaeTraits, VideoShape
from app.config import Settings
from app.latents.foreign.found import Found
from app.latents.foreign.rejected import LatentsRejected
from app.latents.latent_scale import LatentScale
from app.models import profiles
from app.models.entries import ModelEntry

SCALES = ("auto", "normalised", "raw")


@dataclass(frozen=True, slots=True)
class Given:
    """What the user says of the file: the video's sides in pixels and frames, and how its latents are scaled.

    Raises `ValueError` for an unknown scale.
    """

    width: int | None = None
    height: int | None = None
    frames: int | None = None
    scale: str = "auto"

    def __post_init__(self) -> None:
        if self.scale not in SCALES:
            raise ValueError(f"scale must be one of {', '.join(SCALES)}, got {self.scale!r}")


@dataclass(frozen=True, slots=True)
class ModelTraits:
    """The models that might decode a file, and the traits of those whose VAE is known without loading it."""

    models: Mapping[str, ModelEntry]
    settings: Settings

    def of(self, entry: ModelEntry) -> VaeTraits | None:
        """The traits of the model's VAE; reads no weights and nothing from the network."""
        profile = profiles.load(self.settings, entry)
        if profile is not None:
            return profile.traits
        path = Path(entry.source).expanduser() / "vae" / "config.json"
        try:
            return traits_of(entry.vae_class, json.loads(path.read_text(encoding="utf-8")))
        except (OSError, ValueError):
            return None

    def fitting(self, found: Found) -> str:
        """A sentence with the names of the models that could decode the file."""
        names = []
        for name, entry in self.models.items():
            traits = self.of(entry)
            if traits is not None and _is_possible(found, entry, traits):
                names.append(name)
        return f". It fits {', '.join(names)}" if names else ". It fits no model that is known here"


def check_model(found: Found, name: str, entry: ModelEntry | None, known: ModelTraits) -> ModelEntry:
    """The model that decodes the file. Raises `LatentsRejected` if none is named or the file is another's."""
    if entry is None:
        raise LatentsRejected(
            "model_needed", f"{name} does not name its model: name it with --model{known.fitting(found)}"
        )
    if found.vae_class not in (None, entry.vae_class):
        raise LatentsRejected(
            "wrong_model",
            f"{name} is a {found.format}, made by {found.vae_class}; {entry.name} has {entry.vae_class}"
            f"{known.fitting(found)}",
        )
    traits = known.of(entry)
    if traits is not None:
        check_channels(found, name, entry, traits, known)
    return entry


def check_channels(found: Found, name: str, entry: ModelEntry, traits: VaeTraits, known: ModelTraits) -> None:
    """Raise `LatentsRejected` unless the VAE's number of channels is where the layouts have it."""
    if not _is_possible(found, entry, traits):
        raise LatentsRejected(
            "wrong_channels",
            f"{name} has shape {list(found.latents.shape)}; the VAE of {entry.name} takes "
            f"{traits.latent_channels} channels{known.fitting(found)}",
        )


def _is_possible(found: Found, entry: ModelEntry, traits: VaeTraits) -> bool:
    if found.vae_class not in (None, traits.vae_class):
        return False
    shape, dimensions = found.latents.shape, found.latents.ndim
    places = {5: [1], 4: [0], 3: [0, 2], 2: [1]}[dimensions]
    if dimensions >= 4 and found.frames_first(entry, dimensions):
        places.append(places[0] + 1)
    return traits.latent_channels in [shape[place] for place in places]


def recorded_clip(
    found: Found, name: str, entry: ModelEntry, vae: Any, given: Given, known: ModelTraits
) -> tuple[RecordedClip, str]:
    """The decode call for the file, and a sentence about what was done to its latents.

    Raises `LatentsRejected`.
    """
    traits = traits_of(type(vae).__name__, vae.config)
    check_channels(found, name, entry, traits, known)
    latents = _as_video(found, name, entry, traits, given)
    normalised = found.normalised(entry) if given.scale == "auto" else given.scale == "normalised"
    if normalised is None:
        raise LatentsRejected(
            "scale_unknown",
            f"{name} is a {found.format}, and how it is scaled for {entry.name} is not known: say --scale "
            "normalised (as the model denoises them) or --scale raw (as the VAE makes them)",
        )
    scale = LatentScale.of(vae)
    restored = (scale.restored(latents) if normalised else latents).to(vae.dtype)
    text = f"{name}: {found.format} {list(found.latents.shape)}, {_scaling(scale, normalised=normalised)}"
    for note in found.notes:
        text += f"; {note}"
    if found.assumed and given.scale == "auto" and scale.kind != "none":
        other = "raw" if normalised else "normalised"
        text += f". This is assumed: if the video looks wrong, try --scale {other}"
    call = RecordedDecode(restored, kwargs=family_of(vae).clean_kwargs(vae))
    return RecordedClip((call,)), f"{text}."


def _scaling(scale: LatentScale, *, normalised: bool) -> str:
    if not normalised:
        return "raw: decoded as they are"
    return {
        "per_channel": "normalised: multiplied by latents_std / scaling_factor, and latents_mean added",
        "scaling_factor": f"normalised: divided by the scaling_factor {scale.factor:g}",
        "none": "decoded as they are: the model denoises the VAE's own latents",
    }[scale.kind]


def _as_video(found: Found, name: str, entry: ModelEntry, traits: VaeTraits, given: Given) -> Tensor:
    """`[1, C, T, h, w]`. The channels have been checked."""
    latents, channels = found.latents, traits.latent_channels
    if latents.ndim == 5:
        latents = _only(latents, name)
    if latents.ndim <= 3 and latents.shape[-1] == channels:
        unpacked = _unpacked(latents, name, traits, given)
        if unpacked is not None:
            return unpacked
    if latents.ndim == 3:  # one picture
        latents = latents[:, None]
    if latents.shape[1] == channels and found.frames_first(entry, found.latents.ndim):
        latents = latents.transpose(0, 1)
    latents = latents[None]
    _check_sides(latents, name, traits, given)
    return latents


def _only(latents: Tensor, name: str) -> Tensor:
    if latents.shape[0] != 1:
        raise LatentsRejected(
            "several_videos", f"{name} has {latents.shape[0]} videos: save one, such as latents[0:1]"
        )
    return latents[0]


def _unpacked(latents: Tensor, name: str, traits: VaeTraits, given: Given) -> Tensor | None:
    """Packed latents `[1, T*h*w, C]` or `[T*h*w, C]` as `[1, C, T, h, w]`; None for one picture.

    LTX's pipelines pack so, with tokens ordered by frame, row and column.
    """
    sides = (given.frames, given.height, given.width)
    if latents.ndim == 3 and latents.shape[0] == traits.latent_channels and None in sides:
        return None
    tokens = _only(latents, name) if latents.ndim == 3 else latents
    frames, height, width = sides
    if frames is None or height is None or width is None:
        raise LatentsRejected(
            "packed_without_shape",
            f"{name} has packed latents, {tokens.shape[0]:,} tokens of {tokens.shape[1]}: give the video's "
            "--width, --height and --frames",
        )
    shape = _latent_sides(name, traits, frames, height, width)
    if shape[0] * shape[1] * shape[2] != tokens.shape[0]:
        raise LatentsRejected(
            "wrong_shape",
            f"{name} has {tokens.shape[0]:,} tokens; {frames} frames of {width}x{height} are "
            f"{shape[0]} x {shape[1]} x {shape[2]} = {shape[0] * shape[1] * shape[2]:,}",
        )
    return tokens.reshape(1, *shape, -1).permute(0, 4, 1, 2, 3)


def _latent_sides(name: str, traits: VaeTraits, *sides: int) -> tuple[int, int, int]:
    try:
        shape = traits.latent_shape(VideoShape(*sides))
    except ValueError as error:
        raise LatentsRejected("wrong_shape", f"{name}: {error}") from None
    return shape.frames, shape.height, shape.width


def _check_sides(latents: Tensor, name: str, traits: VaeTraits, given: Given) -> None:
    """Raise `LatentsRejected` if the sides that were given are not those of the latents."""
    video = VideoShape(
        traits.video_frames(latents.shape[2]),
        latents.shape[3] * traits.spatial_ratio,
        latents.shape[4] * traits.spatial_ratio,
    )
    for option, wanted, is_there in (
        ("--frames", given.frames, video.frames),
        ("--height", given.height, video.height),
        ("--width", given.width, video.width),
    ):
        if wanted not in (None, is_there):
            raise LatentsRejected(
                "wrong_shape",
                f"{name} has {video.frames} frames of {video.width}x{video.height}, not {option} {wanted}: "
                "a decode cannot change them",
            )
