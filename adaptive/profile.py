"""Tracing a VAE's decode on meta tensors, from its configuration alone: no weights, nothing computed.

Owns: which shapes are traced for a `MemoryProfile`, and the cache of traced peaks. Must not know: devices,
policies.
"""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any, overload

import diffusers
import torch
from torch import nn

from adaptive.errors import UnsupportedVae
from adaptive.families import family_of, traits_of
from adaptive.memory import ITEM_BYTES, Curve, MemoryProfile, TileCosts
from adaptive.residuals import Residuals
from adaptive.stream import decode_whole, open_decode
from adaptive.trace import LiveBytes, trace_peak
from adaptive.types import Cut, LatentShape, PeakEstimate, SpatialTiles, VaeTraits, strategy_of

# Latent pixels of the traced frames. Meta tensors cost nothing, and a real size keeps small constants in
# proportion.
TRACED_HEIGHT, TRACED_WIDTH = 16, 24
TRACED_AREA = TRACED_HEIGHT * TRACED_WIDTH
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
TILED_STRIPS = (2, 4)  # of the traced height: eight and four latent rows
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
    residuals: Residuals | None = None,
) -> PeakEstimate:
    """Memory that decoding latents of this shape (`[B, C, T, h, w]`) will need above weights and input.

    `live_bytes`: tensors alive at the worst moment while `stream_decode` runs and its consumer keeps no
    frame; `frames_per_chunk >= T` is the one-call decode with its output. With more than one of `strips`, of
    a decode of one latent frame at a time whose pictures are cut so. Traced at this length and chunk size on
    a copy of the VAE without weights, so `vae` may be on any device. `UnsupportedVae` where it cannot stream
    and must.
    """
    if not isinstance(latent_shape, LatentShape):
        latent_shape = LatentShape(*latent_shape)
    traced = _traced_copy(vae, dtype)
    if strips > 1:
        return _profile(traced).estimate_cut(latent_shape, Cut(1, SpatialTiles(strips)), residuals)
    frames = latent_shape.frames
    per_pixel = _per_pixel(traced, frames, min(frames_per_chunk, frames))
    strategy = strategy_of(frames_per_chunk, frames)
    residuals = residuals or Residuals(str(vae.device))
    live_bytes = round(per_pixel * latent_shape.area)
    if frames_per_chunk >= frames:
        live_bytes = max(live_bytes, traced.traits.mask_bytes(latent_shape, ITEM_BYTES[traced.dtype]))
    return residuals.estimate(traced.traits.family, traced.dtype, strategy, live_bytes)


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
    return TracedVae(type(vae), vae.config, dtype_name(vae.dtype if dtype is None else dtype))


def _profile(traced: TracedVae) -> MemoryProfile:
    streamed = {}
    if traced.traits.exact_streaming:
        # Frames that know nothing of one another leave no state behind: every length is like the shortest.
        lengths = 1 if traced.traits.frames_independent else None
        streamed = {size: _curve(traced, frames[:lengths], size) for size, frames in STREAMED_FRAMES.items()}
    batched = _curve(traced, BATCHED_FRAMES, None)
    return MemoryProfile(traced.traits, traced.dtype, traced.digest, batched, streamed, _tile_costs(traced))


def _curve(traced: TracedVae, frames: tuple[int, ...], frames_per_chunk: int | None) -> Curve:
    return Curve(
        frames, _TracedValues(frames, lambda count: _per_pixel(traced, count, frames_per_chunk or count))
    )


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


@cache
def _per_pixel(traced: TracedVae, frames: int, frames_per_chunk: int) -> float:
    """Peak live bytes of one latent pixel."""
    shape = (1, traced.traits.latent_channels, frames, TRACED_HEIGHT, TRACED_WIDTH)
    latents = torch.empty(shape, device="meta", dtype=getattr(torch, traced.dtype))
    kwargs = traced.decode_kwargs()
    if frames_per_chunk >= frames:
        peak = trace_peak(lambda: decode_whole(traced.module, latents, **kwargs)).peak_bytes
    else:
        peak = _streamed_peak(traced, latents, frames_per_chunk, kwargs)
    return peak / TRACED_AREA


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
    few, many = (_strip_peaks(traced, frames, strips) for strips in TILED_STRIPS)
    height = TRACED_HEIGHT / TILED_STRIPS[0] + halo, TRACED_HEIGHT / TILED_STRIPS[1] + 2 * halo
    strip = max(0.0, few[1] - many[1]) / (height[0] - height[1]) / TRACED_WIDTH
    base = few[1] / TRACED_AREA - strip * height[0] / TRACED_HEIGHT
    return max(few[0], many[0]) / TRACED_AREA, base, strip


def _strip_peaks(traced: TracedVae, frames: int, strips: int) -> tuple[int, int]:
    """Peaks of decoding one latent frame at a time in strips: before the strips, and while they are made."""
    shape = (1, traced.traits.latent_channels, frames, TRACED_HEIGHT, TRACED_WIDTH)
    latents = torch.empty(shape, device="meta", dtype=getattr(torch, traced.dtype))
    live, head, tail, steady = LiveBytes(), 0, 0, 0
    with (
        torch.inference_mode(False),
        live.active(),
        open_decode(traced.module, latents, **traced.decode_kwargs()) as stream,
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
