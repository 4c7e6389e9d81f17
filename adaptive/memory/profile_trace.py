"""Tracing a VAE's decode on meta tensors, from its configuration alone: no weights, nothing computed.

Owns: which shapes are traced for a `MemoryProfile`, and the cache of traced peaks. Must not know: devices,
policies.
"""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cache
from typing import Any, NamedTuple, overload

import diffusers
import torch
from torch import nn

from adaptive.errors import UnsupportedVae
from adaptive.families import family_of, traits_of
from adaptive.memory.live_bytes import LiveBytes, trace_peak
from adaptive.memory.margins import LearnedMargins
from adaptive.memory.profile import ITEM_BYTES, Curve, MemoryProfile, SweepCosts, TileCosts
from adaptive.stream import decode_whole, open_decode
from adaptive.stream.engines.sweep import Parking
from adaptive.types import Cut, LatentShape, PeakEstimate, SpatialTiles, VaeTraits

# Latent pixels of the traced frames. Meta tensors cost nothing, and a real size keeps borders and small
# constants in proportion: between this and 60 x 104 no family's bytes a pixel differ by more than 0.3 %, from
# 16 x 24 on by no more than 0.6 %.
TRACED = (32, 48)
# A mask over pairs of positions outgrows the rest with the area: counted apart, it must not be the peak here.
TRACED_WITH_MASK = (16, 24)
# Batched bytes are affine in latent frames beyond the first few; streamed bytes rise until the state of every
# layer is full (24 latent frames on LTX), and are affine in the chunk size from there.
BATCHED_FRAMES = (1, 2, 3, 4, 8, 16)
STREAMED_FRAMES = {
    1: (2, 3, 4, 6, 8, 16, 32),
    2: (3, 4, 6, 8, 16, 32),
    4: (5, 6, 8, 12, 16, 32),
    8: (9, 12, 16, 24, 32, 48),
}
TILED_FRAMES = (2, 4, 32)
TILED_STRIPS = (2, 4)  # of the traced height
STEADY_STEPS = 3


def config_digest(config: Mapping[str, Any]) -> str:
    """Identity of a VAE's configuration; keys with a leading underscore (paths, versions) do not count."""
    own = {key: value for key, value in config.items() if not key.startswith("_")}
    return hashlib.sha256(json.dumps(own, sort_keys=True, default=str).encode()).hexdigest()[:16]


def dtype_name(dtype: torch.dtype | str) -> str:
    """ "float32", "float16" or "bfloat16"; `ValueError` for anything else."""
    name = str(dtype).removeprefix("torch.")
    if name not in ITEM_BYTES:
        raise ValueError(f"dtype must be one of {', '.join(ITEM_BYTES)}, got {dtype}")
    return name


def trace_profile(vae_class: str, config: Mapping[str, Any], dtype: torch.dtype | str) -> MemoryProfile:
    """Profile of a diffusers VAE from the name of its class and the numbers of its configuration.

    Takes seconds. `UnsupportedVae` where diffusers has no such class.
    """
    traced = _profile(TracedVae(_class_named(vae_class), config, dtype_name(dtype)))
    return MemoryProfile.from_json(traced.to_json())


def profile_of(vae: Any, dtype: torch.dtype | str | None = None) -> MemoryProfile:
    """Profile of a live VAE, traced on a copy without weights where a plan asks; cached by configuration and
    dtype.
    """
    return _profile(_traced_copy(vae, dtype))


def predict_peak(
    vae: Any,
    latent_shape: tuple[int, ...] | LatentShape,
    *,
    dtype: torch.dtype | str | None = None,
    frames_per_chunk: int,
    strips: int = 1,
    residuals: LearnedMargins | None = None,
) -> PeakEstimate:
    """Memory that decoding latents of this shape (`[B, C, T, h, w]`) will need above weights and input.

    `live_bytes`: tensors alive at the worst moment while `stream_decode` runs and its consumer keeps no
    frame; `frames_per_chunk >= T` is the one-call decode with its output. With more than one of `strips`, of
    a decode of one latent frame at a time whose pictures are cut so. Traced at this length and chunk size on
    a copy of the VAE without weights, so `vae` may be on any device (on the CPU what a layer sweep parks in
    host memory counts), and at this very size where bytes are not exactly proportional to it.
    `UnsupportedVae` where it cannot stream and must.
    """
    if not isinstance(latent_shape, LatentShape):
        latent_shape = LatentShape(*latent_shape)
    traced, residuals = _traced_copy(vae, dtype), residuals or LearnedMargins(str(vae.device))
    frames, size = latent_shape.frames, (latent_shape.height, latent_shape.width)
    cut = Cut(frames_per_chunk) if strips == 1 else Cut(1, SpatialTiles(strips))
    host_bytes = 0
    if strips > 1:
        live_bytes = latent_shape.batch * max(_strip_peaks(traced, frames, strips, size))
    else:
        at = size if not family_of(traced.module).proportional else TRACED
        found = trace_bytes(traced, frames, min(frames_per_chunk, frames), at)
        live_bytes = round((found.together if residuals.on_host else found.device) * latent_shape.area)
        host_bytes = 0 if residuals.on_host else round(found.parked * latent_shape.area)
    strategy = cut.strategy(frames)
    known_by = traced.traits.family, traced.dtype, strategy
    estimate = residuals.estimate(*known_by, live_bytes, cut.chunking(frames))
    return replace(estimate, host_bytes=host_bytes)


class TracedVae:
    """A VAE on the meta device, equal to another where class, configuration and dtype are."""

    def __init__(self, vae_class: type, config: Mapping[str, Any], dtype: str) -> None:
        self.vae_class = vae_class
        self.config = config
        self.dtype = dtype
        self.digest = config_digest(config)
        self._module: Any = None

    def __eq__(self, other: object) -> bool:
        return isinstance(other, TracedVae) and self._identity == other._identity

    def __hash__(self) -> int:
        return hash(self._identity)

    @property
    def _identity(self) -> tuple[type, str, str]:
        return self.vae_class, self.digest, self.dtype

    @property
    def traits(self) -> VaeTraits:
        """Shape rules and abilities."""
        return traits_of(self.vae_class.__name__, self.config)

    @property
    def module(self) -> Any:
        """The VAE itself, made at first use."""
        if self._module is None:
            with torch.device("meta"):
                module = self.vae_class.from_config(dict(self.config))  # type: ignore[attr-defined]
            # diffusers' own `to` warns of casts that its `torch_dtype` does as well. Some parameters ignore
            # the default device (`torch.Tensor([...])` in its AlphaBlender).
            self._module = nn.Module.to(module.eval(), "meta", getattr(torch, self.dtype))
        return self._module

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the latents that profiles are traced at."""
        return TRACED_WITH_MASK if self.traits.mask_numbers else TRACED

    def decode_kwargs(self) -> dict[str, Any]:
        """Arguments that `vae.decode` of this family needs beside latents, on the meta device."""
        _, kwargs = family_of(self.module).self_test_case(self.module)
        return {key: value.to("meta") if hasattr(value, "to") else value for key, value in kwargs.items()}


def _class_named(vae_class: str) -> type:
    found = getattr(diffusers, vae_class, None)
    if not isinstance(found, type) or not issubclass(found, nn.Module):
        raise UnsupportedVae(vae_class, "tracing: diffusers has no such class")
    return found


def _traced_copy(vae: Any, dtype: torch.dtype | str | None) -> TracedVae:
    family_of(vae)  # refuses what only looks like a VAE
    return TracedVae(type(vae), vae.config, dtype_name(vae.dtype if dtype is None else dtype))


def _profile(traced: TracedVae) -> MemoryProfile:
    streamed = {}
    if traced.traits.exact_streaming:
        # Frames that know nothing of one another leave no state behind: every length is like the shortest.
        lengths = 1 if traced.traits.frames_independent else None
        streamed = _streamed_curves(traced, "device", lengths)
    sweep = None
    if streamed and family_of(traced.module).parks_activations:
        sweep = SweepCosts(_streamed_curves(traced, "together"), _streamed_curves(traced, "parked"))
    batched = _curve(traced, BATCHED_FRAMES, None, "device")
    tiled = _tile_costs(traced)
    return MemoryProfile(traced.traits, traced.dtype, traced.digest, batched, streamed, tiled, sweep)


def _streamed_curves(traced: TracedVae, kind: str, lengths: int | None = None) -> dict[int, Curve]:
    return {size: _curve(traced, frames[:lengths], size, kind) for size, frames in STREAMED_FRAMES.items()}


def _curve(traced: TracedVae, frames: tuple[int, ...], frames_per_chunk: int | None, kind: str) -> Curve:
    def value(count: int) -> float:
        found = trace_bytes(traced, count, frames_per_chunk or count, traced.size)
        return float(getattr(found, kind))

    return Curve(frames, _TracedValues(frames, value))


def _tile_costs(traced: TracedVae) -> TileCosts | None:
    halo = family_of(traced.module).strip_halo(traced.module)
    if halo is None:
        return None
    frames = TILED_FRAMES[:1] if traced.traits.frames_independent else TILED_FRAMES

    def curve(part: int) -> Curve:
        return Curve(frames, _TracedValues(frames, lambda count: _strip_costs(traced, count, halo)[part]))

    return TileCosts(halo, curve(0), curve(1), curve(2))


class _TracedValues(Sequence[float]):
    """Values of a curve, each traced when it is first asked for: a plan needs few of them."""

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
    """Peaks of one latent pixel: on a device with its own memory, of what is parked beside it, and where both
    share one memory.
    """

    device: float
    parked: float
    together: float


@cache
def trace_bytes(traced: TracedVae, frames: int, frames_per_chunk: int, size: tuple[int, int]) -> TracedBytes:
    """Peaks of one latent pixel of a picture of this size."""
    latents = _latents(traced, frames, size)
    kwargs, area = traced.decode_kwargs(), size[0] * size[1]
    if frames_per_chunk >= frames:
        peak = trace_peak(lambda: decode_whole(traced.module, latents, **kwargs)).peak_bytes / area
        return TracedBytes(peak, 0.0, peak)
    apart = Parking(same_memory=False)
    with apart.active():
        device = _streamed_peak(traced, latents, frames_per_chunk, kwargs) / area
    if not apart.peak_bytes:
        return TracedBytes(device, 0.0, device)
    with Parking(same_memory=True).active():
        together = _streamed_peak(traced, latents, frames_per_chunk, kwargs) / area
    return TracedBytes(device, apart.peak_bytes / area, together)


def _latents(traced: TracedVae, frames: int, size: tuple[int, int]) -> torch.Tensor:
    shape = (1, traced.traits.latent_channels, frames, *size)
    return torch.empty(shape, device="meta", dtype=getattr(torch, traced.dtype))


def _streamed_peak(
    traced: TracedVae, latents: torch.Tensor, frames_per_chunk: int, kwargs: dict[str, Any]
) -> int:
    """Peak over the steps; ends early once full chunks come out and the peak has stood still: it stays so."""
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
    """The numbers of `TileCosts` at a length: strips of two heights tell what grows with them and what does
    not.
    """
    rows, columns = traced.size
    few, many = (_strip_peaks(traced, frames, strips, traced.size) for strips in TILED_STRIPS)
    height = rows / TILED_STRIPS[0] + halo, rows / TILED_STRIPS[1] + 2 * halo
    strip = max(0.0, few[1] - many[1]) / (height[0] - height[1]) / columns
    base = few[1] / rows / columns - strip * height[0] / rows
    return max(few[0], many[0]) / rows / columns, base, strip


@cache
def _strip_peaks(traced: TracedVae, frames: int, strips: int, size: tuple[int, int]) -> tuple[int, int]:
    """Peaks of decoding one latent frame at a time in strips: before the strips, and while they are made."""
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
