"""The cases of `tests/bench/gpu.py`, and the ways to decode them: diffusers' default, its
manual settings, and ours.

A way takes a VAE and latents `[B, C, T, h, w]` and yields video frames in order, without keeping them.
Published configurations have random weights: memory and time do not depend on their values. Imports no torch,
which the process that only starts the measurements would do for nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from adaptive.planning.planner import RESERVE_BYTES, Policy

if TYPE_CHECKING:
    from torch import Tensor

    from adaptive.decoding.decoder import AdaptiveDecoder

Way = Callable[[Any, "Tensor"], Iterator["Tensor"]]
DEFAULT, OURS = "diffusers default", "framefit"


@dataclass(frozen=True, slots=True)
class Case:
    """A VAE's published configuration, a video, and the settings its users turn to when memory is short."""

    vae_class: str
    config: dict[str, Any]
    video: str  # frames x height x width
    latents: tuple[int, int, int, int, int]  # [B, C, T, h, w]
    manual: dict[str, Way] = field(default_factory=dict)  # none of these but chunks of 2D VAEs are exact
    frames_in_batch: bool = False  # diffusers takes `[B*T, C, h, w]`


def build(case: Case, dtype: str) -> Any:
    """The VAE with random weights, on the CPU."""
    import diffusers
    import torch

    torch.manual_seed(0)
    vae = getattr(diffusers, case.vae_class).from_config(case.config)
    # diffusers' own `to` warns of casts that its `torch_dtype` does as well
    return torch.nn.Module.to(vae.eval(), getattr(torch, dtype))


def ways_of(case: Case) -> dict[str, Way]:
    """Every way of decoding the case by its name, the default first and ours last."""
    default = _folded(None) if case.frames_in_batch else _one_call
    return {DEFAULT: default, **case.manual, OURS: ours([])}


def ours(made: list[AdaptiveDecoder], reserve_bytes: int = RESERVE_BYTES) -> Way:
    """The adaptive decoder in the memory that is free, less a reserve; each decoder is added to `made`."""
    from adaptive.decoding.decoder import AdaptiveDecoder

    def way(vae: Any, latents: Tensor) -> Iterator[Tensor]:
        decoder = AdaptiveDecoder(vae, policy=Policy(reserve_bytes=reserve_bytes))
        made.append(decoder)
        yield from decoder.frames(latents)

    return way


def _one_call(vae: Any, latents: Tensor) -> Iterator[Tensor]:
    yield vae.decode(latents, return_dict=False)[0]


def _flags(*methods: str, **flags: Any) -> Way:
    """One call after the VAE's own `enable_...` methods and with its own flags."""

    def way(vae: Any, latents: Tensor) -> Iterator[Tensor]:
        for method in methods:
            getattr(vae, method)()
        for name, value in flags.items():
            setattr(vae, name, value)
        yield vae.decode(latents, return_dict=False)[0]

    return way


def _folded(chunk: int | None, *methods: str) -> Way:
    """As pipelines of image VAEs and SVD do: frames in the batch, `chunk` at a time (None: all)."""

    def way(vae: Any, latents: Tensor) -> Iterator[Tensor]:
        for method in methods:
            getattr(vae, method)()
        frames = latents.transpose(1, 2).flatten(0, 1)
        for part in frames.split(chunk or len(frames)):
            extra = {"num_frames": len(part)} if type(vae).__name__.endswith("TemporalDecoder") else {}
            decoded = vae.decode(part, return_dict=False, **extra)[0]
            yield decoded.unflatten(0, (latents.shape[0], -1)).transpose(1, 2)

    return way


_LTX_WAYS = {
    "tiling": _flags("enable_tiling"),
    "framewise": _flags(use_framewise_decoding=True),
    "tiling + framewise": _flags("enable_tiling", use_framewise_decoding=True),
}
_SD = {"block_out_channels": (128, 256, 512, 512), "layers_per_block": 2, "latent_channels": 4}
_DOWN, _UP = ("DownEncoderBlock2D",) * 4, ("UpDecoderBlock2D",) * 4
_SD_CHUNKS = {f"decode_chunk_size={size}": _folded(size) for size in (8, 4, 2, 1)}

CASES = {
    "ltx-49x512x768": Case("AutoencoderKLLTXVideo", {}, "49x512x768", (1, 128, 7, 16, 24), _LTX_WAYS),
    "ltx-121x768x1280": Case("AutoencoderKLLTXVideo", {}, "121x768x1280", (1, 128, 16, 24, 40), _LTX_WAYS),
    "wan-81x480x832": Case(
        "AutoencoderKLWan", {}, "81x480x832", (1, 16, 21, 60, 104), {"tiling": _flags("enable_tiling")}
    ),
    "svd-25x576x1024": Case(
        "AutoencoderKLTemporalDecoder",
        {**_SD, "down_block_types": _DOWN},
        "25x576x1024",
        (1, 4, 25, 72, 128),
        _SD_CHUNKS,
        frames_in_batch=True,
    ),
    "sd-16x576x1024": Case(
        "AutoencoderKL",
        {**_SD, "down_block_types": _DOWN, "up_block_types": _UP},
        "16x576x1024",
        (1, 4, 16, 72, 128),
        {**_SD_CHUNKS, "slicing": _folded(None, "enable_slicing"), "tiling": _folded(None, "enable_tiling")},
        frames_in_batch=True,
    ),
}

# The same paths in seconds on any machine: what `--tiny` runs.
_NARROW = {"block_out_channels": (8, 16), "norm_num_groups": 4, "down_block_types": _DOWN[:2]}
TINY_CASES = {
    "ltx-tiny": Case(
        "AutoencoderKLLTXVideo",
        {
            "latent_channels": 8,
            "block_out_channels": (8, 16, 16, 16),
            "decoder_block_out_channels": (8, 16, 16, 16),
            "layers_per_block": (1, 1, 1, 1, 1),
            "decoder_layers_per_block": (1, 1, 1, 1, 1),
        },
        "41x512x128",
        (1, 8, 6, 16, 4),
        {"framewise": _LTX_WAYS["framewise"]},
    ),
    "sd-tiny": Case(
        "AutoencoderKL",
        {**_NARROW, "up_block_types": _UP[:2]},
        "8x192x192",
        (1, 4, 8, 96, 96),
        {"decode_chunk_size=2": _folded(2)},
        frames_in_batch=True,
    ),
}
