"""How often a pipeline that decodes in place denoises and decodes in one call, and its largest decode.

For its job's progress, and for the plan before it runs. The numbers are those of diffusers' own loops; where
an entry's `call` does not give an argument, `DEFAULTS` has the pipeline's. Must not import torch.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from adaptive.types import VideoShape
from app.jobs import JobSpec

DEFAULTS: Mapping[str, Any] = {
    "latent_window_size": 9,
    "num_latent_frames_per_chunk": 9,
    "enable_temporal_reasoning": False,
    "num_temporal_reasoning_steps": 0,
    "temporal_tile_size": 80,
    "temporal_overlap": 24,
    "decode_horizontal_tiles": 4,
    "decode_vertical_tiles": 4,
    "decode_overlap": 3,
}
PYRAMID_STAGES = 3
_LTX_SPATIAL_RATIO = 32


@dataclass(frozen=True, slots=True)
class Rounds:
    """`sections` times: `steps` steps, then `decodes` decodes. `largest` is the video of the largest one."""

    largest: VideoShape
    steps: int
    sections: int = 1
    decodes: int = 1


# From the request, the entry's `call` and the VAE's temporal ratio.
CountRounds = Callable[[JobSpec, Mapping[str, Any], int], Rounds]


def one_round(spec: JobSpec, _call: Mapping[str, Any], _ratio: int) -> Rounds:
    """One denoise, one decode."""
    return Rounds(_video(spec), spec.num_inference_steps)


def framepack(spec: JobSpec, call: Mapping[str, Any], ratio: int) -> Rounds:
    """A decode after each section; it begins with the section before, and the last one with the image."""
    window = _value(call, "latent_window_size")
    sections = _sections(spec, window, ratio)
    frames = ratio * window * min(sections, 2) + 1
    return Rounds(_video(spec, frames=frames), spec.num_inference_steps, sections)


def helios(spec: JobSpec, call: Mapping[str, Any], ratio: int) -> Rounds:
    """A decode after each chunk of latent frames, of this chunk alone."""
    chunk = _value(call, "num_latent_frames_per_chunk")
    largest = _video(spec, frames=(chunk - 1) * ratio + 1)
    return Rounds(largest, spec.num_inference_steps, _sections(spec, chunk, ratio))


def helios_pyramid(spec: JobSpec, call: Mapping[str, Any], ratio: int) -> Rounds:
    """As `helios`, with the request's steps in each stage of the pyramid."""
    alike = helios(spec, call, ratio)
    return Rounds(alike.largest, PYRAMID_STAGES * spec.num_inference_steps, alike.sections)


def chronoedit(spec: JobSpec, call: Mapping[str, Any], _ratio: int) -> Rounds:
    """With temporal reasoning up to the last step, what was thought and what was edited are decoded apart."""
    reasoned = _value(call, "num_temporal_reasoning_steps")
    is_apart = _value(call, "enable_temporal_reasoning") and reasoned >= spec.num_inference_steps
    return Rounds(_video(spec), spec.num_inference_steps, decodes=2 if is_apart else 1)


def ltx_long(spec: JobSpec, call: Mapping[str, Any], ratio: int) -> Rounds:
    """All windows are denoised, then each tile of the picture is decoded, its last latent frame twice."""
    latent_frames = (spec.num_frames - 1) // ratio + 1
    window = max(1, _value(call, "temporal_tile_size") // ratio)
    stride = max(1, window - _value(call, "temporal_overlap") // ratio)
    windows = 1 + max(0, -(-(latent_frames - window) // stride))
    rows, columns = _value(call, "decode_vertical_tiles"), _value(call, "decode_horizontal_tiles")
    overlap = _value(call, "decode_overlap")
    largest = VideoShape(
        spec.num_frames + ratio, _tile(spec.height, rows, overlap), _tile(spec.width, columns, overlap)
    )
    # It takes one step less than asked for in each window.
    return Rounds(largest, windows * max(1, spec.num_inference_steps - 1), decodes=rows * columns)


def _tile(side: int, tiles: int, overlap: int) -> int:
    """Pixels of the longest of so many tiles of a side: the last one has what is left."""
    whole = side // _LTX_SPATIAL_RATIO
    base = (whole + (tiles - 1) * overlap) // tiles
    return max(base, whole - (tiles - 1) * (base - overlap)) * _LTX_SPATIAL_RATIO


def _sections(spec: JobSpec, latent_frames: int, ratio: int) -> int:
    window: int = (latent_frames - 1) * ratio + 1
    return max(1, -(-spec.num_frames // window))


def _video(spec: JobSpec, frames: int | None = None) -> VideoShape:
    return VideoShape(spec.video_frames if frames is None else frames, spec.height, spec.width)


def _value(call: Mapping[str, Any], name: str) -> Any:
    """An argument of the call: the entry's, else the pipeline's default."""
    return call.get(name, DEFAULTS[name])
