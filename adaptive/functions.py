"""The library's plain functions: decode, stream, plan. Each is a thin call of the parts that do the work."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from adaptive.decoding.decoder import AdaptiveDecoder
from adaptive.device.probe import open_probe
from adaptive.families import family_of
from adaptive.memory.profile_trace import profile_of
from adaptive.planning.planner import Policy, plan_decode
from adaptive.stream import decode_whole, gathered, open_decode
from adaptive.stream.offload import execution_device
from adaptive.types import DecodePlan, LatentShape


def decode(
    vae: Any,
    latents: Tensor,
    *,
    strategy: str = "auto",
    frames_per_chunk: int | None = None,
    budget_bytes: int | None = None,
    exact_only: bool = True,
    **decode_kwargs: Any,
) -> Tensor:
    """Decode `latents` (`[B, C, T, h, w]`, on any device) to `[B, C, F, H, W]` in the VAE's range, on its
    device.

    `strategy` is auto or the name of an `adaptive.types.Strategy`; `frames_per_chunk` forces a chunk size in
    latent frames; `budget_bytes` caps the memory taken above weights, latents included in neither.
    `decode_kwargs` are the VAE's own (`temb`, ...). The pixels are the same on every rung, unless
    `exact_only=False` lets an approximate one be taken where no exact one fits, or one is asked for. Raises
    `DoesNotFit` where no allowed rung fits, `DecodeOutOfMemory` where even the smallest failed, and
    `UnsupportedVae` where chunks are forced on a VAE that cannot stream.
    """
    policy = Policy(
        strategy=strategy,
        frames_per_chunk=frames_per_chunk,
        budget_bytes=budget_bytes,
        exact_only=exact_only,
    )
    decoder = AdaptiveDecoder(vae, policy=policy, keeps_output=True)
    total = family_of(vae).video_frames(decoder.profile.traits, latents.shape[2])
    return gathered(decoder.frames(latents, **decode_kwargs), total)


def stream_decode(
    vae: Any, latents: Tensor, *, frames_per_chunk: int, **decode_kwargs: Any
) -> Iterator[Tensor]:
    """Decode `latents` (`[B, C, T, h, w]`) in chunks of exactly `frames_per_chunk` latent frames.

    Yields `[B, C, f, H, W]` in order, in the VAE's range, on its device; `frames_per_chunk >= T` is one call
    with one result. Keep no part while asking for the next and memory stays as `predict_peak` says. Neither
    plans nor retries: an out-of-memory is torch's own error. `UnsupportedVae` where the VAE cannot stream.
    """
    if frames_per_chunk < 1:
        raise ValueError(f"frames_per_chunk must be at least 1, got {frames_per_chunk}")
    if frames_per_chunk >= latents.shape[2]:
        return _whole(vae, latents, decode_kwargs)
    return _streamed(vae, latents, frames_per_chunk, decode_kwargs)


def _whole(vae: Any, latents: Tensor, decode_kwargs: dict[str, Any]) -> Iterator[Tensor]:
    yield decode_whole(vae, latents, **decode_kwargs)


def _streamed(
    vae: Any, latents: Tensor, frames_per_chunk: int, decode_kwargs: dict[str, Any]
) -> Iterator[Tensor]:
    with open_decode(vae, latents, **decode_kwargs) as stream:
        while not stream.finished:
            frames = stream.step(frames_per_chunk)
            if frames.shape[2]:
                yield frames
            del frames  # or it would stay alive through the next step


def plan(
    vae: Any,
    latent_shape: tuple[int, ...] | torch.Size,
    *,
    strategy: str = "auto",
    frames_per_chunk: int | None = None,
    budget_bytes: int | None = None,
    exact_only: bool = True,
) -> DecodePlan:
    """The plan that `decode` would make now for latents of this shape (`[B, C, T, h, w]`); raises as `decode`
    does.
    """
    policy = Policy(
        strategy=strategy,
        frames_per_chunk=frames_per_chunk,
        budget_bytes=budget_bytes,
        exact_only=exact_only,
    )
    probe = open_probe(str(execution_device(vae)))
    probe.release()
    return plan_decode(profile_of(vae), LatentShape(*latent_shape), probe.read(), policy)
