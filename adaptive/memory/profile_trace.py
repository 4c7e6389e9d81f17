"""Traces a VAE's decode on meta tensors, from its configuration alone: no weights, and nothing is computed.

Owns the choice of shapes that are traced for a `MemoryProfile`, and the cache of traced peaks. It does not
know devices or policies.

Longer than 300 lines because the shapes of every kind of rung are chosen here together.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import cache
from typing import Any, NamedTuple, overload

import diffusers
import torch
from torch import nn

from adaptive.errors import AdaptiveError, UnsupportedVae
from adaptive.families import family_of
from adaptive.memory import published
from adaptive.memory.live_bytes import LiveBytes, trace_peak
from adaptive.memory.margins import LearnedMargins
from adaptive.memory.profile import ITEM_BYTES, Curve, MemoryProfile, SweepCosts, TileCosts
from adaptive.memory.traced_vae import TRACED, TracedVae, config_digest, dtype_name
from adaptive.stream import decode_whole, open_decode
from adaptive.stream.engines.sweep import ParkedFrames
from adaptive.types import Cut, LatentShape, PeakEstimate, SpatialTiles

# Batched bytes are affine in latent frames beyond the first few. Streamed bytes rise until every layer's
# state is full (24 latent frames on LTX), and are affine in the chunk size from there.
BATCHED_FRAMES = (1, 2, 3, 4, 8, 16)
LARGE_VIDEO_SHARE = 1 / 8
BATCHED_BY_FRAME = 3  # latent frames from which bytes are affine, see `Family.batched_by_frame`
STREAMED_FRAMES = {
    1: (2, 3, 4, 6, 8, 16, 32),
    2: (3, 4, 6, 8, 16, 32),
    4: (5, 6, 8, 12, 16, 32),
    8: (9, 12, 16, 24, 32, 48),
}
TILED_FRAMES = (2, 4, 32)
TILED_STRIPS = (2, 4)  # of the traced height
STEADY_STEPS = 3


def trace_profile(vae_class: str, config: Mapping[str, Any], dtype: torch.dtype | str) -> MemoryProfile:
    """Profile of a diffusers VAE, from the name of its class and its configuration.

    Takes seconds. Raises `UnsupportedVae` where diffusers has no such class.
    """
    traced = lazy_profile(TracedVae(_class_named(vae_class), config, dtype_name(dtype)))
    return MemoryProfile.from_json(traced.to_json())


def profile_of(vae: Any, dtype: torch.dtype | str | None = None) -> MemoryProfile:
    """Profile of a loaded VAE; `dtype` defaults to the VAE's own.

    It ships with the library for published VAEs. Else the peaks are traced when a plan first needs them, on a
    copy without weights, and cached by configuration and dtype. Raises `UnsupportedVae` where this VAE cannot
    be traced.
    """
    traced = _traced_copy(vae, dtype)
    name = published.name_of(traced.vae_class.__name__, traced.digest, traced.dtype)
    known = published.load(name) if family_of(vae).is_known else None
    return known or lazy_profile(traced)


def published_name(vae_class: str, config: Mapping[str, Any], dtype: str) -> str:
    """Name of the shipped profile of a diffusers VAE, whose configuration need not be complete."""
    complete = TracedVae(_class_named(vae_class), config, dtype).module.config
    return published.name_of(vae_class, config_digest(complete), dtype)


def predict_peak(
    vae: Any,
    latent_shape: tuple[int, ...] | LatentShape,
    *,
    dtype: torch.dtype | str | None = None,
    frames_per_chunk: int,
    strips: int = 1,
    residuals: LearnedMargins | None = None,
) -> PeakEstimate:
    """Memory above weights and input that decoding latents of this shape (`[B, C, T, h, w]`) needs.

    `live_bytes` are the tensors alive at the peak while `stream_decode` runs and its consumer keeps no frame.
    `frames_per_chunk >= T` means the one-call decode with its output. With `strips > 1` the estimate is for a
    decode of one latent frame at a time, each frame cut into that many strips.

    The decode is traced at this length and chunk size on a copy of the VAE without weights, so `vae` may be
    on any device. The size is the real one only where bytes are not exactly proportional to it. On the CPU
    the activations that a layer sweep parks in host memory count too. Raises `UnsupportedVae` where
    `frames_per_chunk < T` and the VAE cannot stream, and where its decode of video cannot be traced.
    """
    if not isinstance(latent_shape, LatentShape):
        latent_shape = LatentShape(*latent_shape)
    traced, residuals = _first_equal(_traced_copy(vae, dtype)), residuals or LearnedMargins(str(vae.device))
    frames, size = latent_shape.frames, (latent_shape.height, latent_shape.width)
    cut = Cut(frames_per_chunk) if strips == 1 else Cut(1, SpatialTiles(strips))
    host_bytes = 0
    if strips > 1:
        live_bytes = latent_shape.batch * max(_strip_peaks(traced, frames, strips, size))
    else:
        at = size if not traced.family.proportional else TRACED
        found = trace_bytes(traced, frames, min(frames_per_chunk, frames), at)
        live_bytes = round((found.together if residuals.on_host else found.device) * latent_shape.area)
        host_bytes = 0 if residuals.on_host else round(found.parked * latent_shape.area)
    strategy = cut.strategy(frames)
    known_by = traced.traits.family, traced.dtype, strategy
    estimate = residuals.estimate(*known_by, live_bytes, cut.chunking(frames))
    return replace(estimate, host_bytes=host_bytes)


def _class_named(vae_class: str) -> type:
    found = getattr(diffusers, vae_class, None)
    if not isinstance(found, type) or not issubclass(found, nn.Module):
        raise UnsupportedVae(vae_class, "tracing: diffusers has no such class")
    return found


def _traced_copy(vae: Any, dtype: torch.dtype | str | None) -> TracedVae:
    family_of(vae)  # raises for an object that is not a VAE
    return TracedVae(type(vae), vae.config, dtype_name(vae.dtype if dtype is None else dtype))


def lazy_profile(traced: TracedVae) -> MemoryProfile:
    """Profile whose numbers are traced when they are first read."""
    traced = _first_equal(traced)
    streamed = {}
    with _told(traced):
        if traced.traits.exact_streaming:
            # Independent frames leave no state behind, so every length needs what the shortest needs.
            lengths = 1 if traced.traits.frames_independent else None
            streamed = _streamed_curves(traced, "device", lengths)
        sweep = None
        if streamed and traced.family.parks_activations:
            sweep = SweepCosts(_streamed_curves(traced, "together"), _streamed_curves(traced, "parked"))
        batched = _batched_curve(traced)
        tiled = _tile_costs(traced)
        return MemoryProfile(traced.traits, traced.dtype, traced.digest, batched, streamed, tiled, sweep)


@cache
def _first_equal(traced: TracedVae) -> TracedVae:
    """The first VAE that equals `traced`, whose module may be there already."""
    return traced


@contextmanager
def _told(traced: TracedVae) -> Iterator[None]:
    """Raise errors of the VAE's own code as `UnsupportedVae`: its memory cannot be predicted."""
    try:
        yield
    except AdaptiveError:
        raise
    except Exception as error:
        wanted = f"predicting its memory: its decode of video cannot be traced ({error!r:.200})"
        raise UnsupportedVae(traced.vae_class.__name__, wanted) from error


def _batched_curve(traced: TracedVae) -> Curve:
    """Bytes of one call. Where it runs frame by frame, longer videos follow from a short one's trace: each
    frame adds its latents and its video. A video that is large beside the network's own bytes is traced,
    because the peak may then be where its parts are joined.
    """
    if not traced.family.batched_by_frame:
        return _curve(traced, BATCHED_FRAMES, None, "device")
    traits = traced.traits
    pixels = traits.temporal_ratio * traits.spatial_ratio**2
    numbers = traced.family.video_channels(traced.config) * pixels + traits.latent_channels

    def value(count: int) -> float:
        short = min(count, BATCHED_BY_FRAME)
        found = trace_bytes(traced, short, short, traced.size).device
        added = (count - short) * numbers * ITEM_BYTES[traced.dtype]
        if added > found * LARGE_VIDEO_SHARE:
            return trace_bytes(traced, count, count, traced.size).device
        return found + added

    return Curve(BATCHED_FRAMES, _TracedValues(BATCHED_FRAMES, value))


def _streamed_curves(traced: TracedVae, kind: str, lengths: int | None = None) -> dict[int, Curve]:
    return {size: _curve(traced, frames[:lengths], size, kind) for size, frames in STREAMED_FRAMES.items()}


def _curve(traced: TracedVae, frames: tuple[int, ...], frames_per_chunk: int | None, kind: str) -> Curve:
    def value(count: int) -> float:
        found = trace_bytes(traced, count, frames_per_chunk or count, traced.size)
        return float(getattr(found, kind))

    return Curve(frames, _TracedValues(frames, value))


def _tile_costs(traced: TracedVae) -> TileCosts | None:
    halo = traced.family.strip_halo(traced.module)
    if halo is None:
        return None
    frames = TILED_FRAMES[:1] if traced.traits.frames_independent else TILED_FRAMES

    def curve(part: int) -> Curve:
        return Curve(frames, _TracedValues(frames, lambda count: _strip_costs(traced, count, halo)[part]))

    return TileCosts(halo, curve(0), curve(1), curve(2))


class _TracedValues(Sequence[float]):
    """Values of a curve, each traced on first access: a plan needs few of them."""

    def __init__(self, frames: tuple[int, ...], value: Callable[[int], float]) -> None:
        self._frames = frames
        self._value = value

    def __len__(self) -> int:
        return len(self._frames)

    @overload
    def __getitem__(self, index: int) -> float: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[float]: ...
    def __getitem__(self, index: int | slice) -> float | Sequence[float]:
        if isinstance(index, slice):
            return [self[each] for each in range(*index.indices(len(self)))]
        return self._value(self._frames[index])


class TracedBytes(NamedTuple):
    """Peak bytes a latent pixel of one decode."""

    device: float  # on a device with its own memory
    parked: float  # of activations that are parked in host memory meanwhile
    together: float  # where the device's memory is the host's


@cache
def trace_bytes(traced: TracedVae, frames: int, frames_per_chunk: int, size: tuple[int, int]) -> TracedBytes:
    """Peak bytes a latent pixel of decoding `frames` latent frames of this height and width."""
    with _told(traced):
        return _traced_bytes(traced, frames, frames_per_chunk, size)


def _traced_bytes(
    traced: TracedVae, frames: int, frames_per_chunk: int, size: tuple[int, int]
) -> TracedBytes:
    latents = _latents(traced, frames, size)
    kwargs, area = traced.decode_kwargs(), size[0] * size[1]
    if frames_per_chunk >= frames:
        peak = trace_peak(lambda: decode_whole(traced.module, latents, **kwargs)).peak_bytes / area
        return TracedBytes(peak, 0.0, peak)
    apart = ParkedFrames(same_memory=False)
    with apart.active():
        device = _streamed_peak(traced, latents, frames_per_chunk, kwargs) / area
    if not apart.peak_bytes:
        return TracedBytes(device, 0.0, device)
    with ParkedFrames(same_memory=True).active():
        together = _streamed_peak(traced, latents, frames_per_chunk, kwargs) / area
    return TracedBytes(device, apart.peak_bytes / area, together)


def _latents(traced: TracedVae, frames: int, size: tuple[int, int]) -> torch.Tensor:
    shape = (1, traced.traits.latent_channels, frames, *size)
    return torch.empty(shape, device="meta", dtype=getattr(torch, traced.dtype))


def _streamed_peak(
    traced: TracedVae, latents: torch.Tensor, frames_per_chunk: int, kwargs: dict[str, Any]
) -> int:
    """Peak bytes over all steps.

    Stops after `STEADY_STEPS` full chunks with the same peak: it does not change any more.
    """
    full = frames_per_chunk * traced.traits.temporal_ratio
    live = LiveBytes()
    steady = 0
    with (
        torch.inference_mode(False),
        live.active(),
        open_decode(traced.module, latents, **kwargs) as stream,
    ):
        while not stream.finished and steady < STEADY_STEPS:
            before, done = live.peak_bytes, stream.video_frames_done
            stream.step(frames_per_chunk)
            came_out = stream.video_frames_done - done
            steady = steady + 1 if came_out == full and live.peak_bytes == before else 0
    return live.peak_bytes


@cache
def _strip_costs(traced: TracedVae, frames: int, halo: float) -> tuple[float, float, float]:
    """`head`, `base` and `strip` of `TileCosts` at a length.

    Tracing strips of two heights separates the bytes that grow with the height from those that do not.
    """
    rows, columns = traced.size
    few, many = (_strip_peaks(traced, frames, strips, traced.size) for strips in TILED_STRIPS)
    height = rows / TILED_STRIPS[0] + halo, rows / TILED_STRIPS[1] + 2 * halo
    strip = max(0.0, few[1] - many[1]) / (height[0] - height[1]) / columns
    base = few[1] / rows / columns - strip * height[0] / rows
    return max(few[0], many[0]) / rows / columns, base, strip


@cache
def _strip_peaks(traced: TracedVae, frames: int, strips: int, size: tuple[int, int]) -> tuple[int, int]:
    """Peak bytes of decoding one latent frame at a time: before the strips, and while they are decoded."""
    latents, kwargs = _latents(traced, frames, size), traced.decode_kwargs()
    live, head, tail, steady = LiveBytes(), 0, 0, 0
    with (
        torch.inference_mode(False),
        live.active(),
        open_decode(traced.module, latents, **kwargs) as stream,
    ):
        while not stream.finished and steady < STEADY_STEPS:
            before, done = (head, tail), stream.video_frames_done
            live.reset_peak()
            stream.begin(1)
            head = max(head, live.peak_bytes)
            live.reset_peak()
            stream.step(1, strips)
            tail = max(tail, live.peak_bytes)
            came_out = stream.video_frames_done - done
            full = came_out == traced.traits.temporal_ratio
            steady = steady + 1 if full and (head, tail) == before else 0
    return head, tail
