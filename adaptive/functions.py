"""The library's functions `decode`, `stream_decode` and `plan`. Each is a thin call of the rooms below."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from adaptive.decoding.decoder import AdaptiveDecoder
from adaptive.planning.planner import Policy
from adaptive.stream import decode_whole, join_chunks, open_decode, video_frames_of
from adaptive.stream.inputs import refuse_gradient
from adaptive.types import DecodePlan, LatentShape


def decode(
    vae: Any,
    latents: Tensor,
    *,
    strategy: str = "auto",
    frames_per_chunk: int | None = None,
    budget_bytes: int | None = None,
    exact_only: bool = True,
    require_finite: bool = False,
    **decode_kwargs: Any,
) -> Tensor:
    """Decode `latents` (`[B, C, T, h, w]`, on any device) to a video `[B, C, F, H, W]`.

    The video is in the VAE's range, on the VAE's device. `strategy` is auto or the value of an
    `adaptive.types.Strategy`. `frames_per_chunk` forces a chunk size in latent frames. `budget_bytes` caps
    the memory above weights and latents. `decode_kwargs` are the VAE's own (`temb`, ...).

    The pixels are the same on every exact rung. With `exact_only=False` an approximate rung is used where no
    exact one fits, or where `strategy` names it. Raises `DoesNotFit` where no allowed rung fits,
    `DecodeOutOfMemory` where even the smallest rung runs out of memory, and `UnsupportedVae` where chunks are
    forced on a VAE that cannot stream. No gradient is recorded: latents that require one are refused with
    `ValueError`. `DtypeMismatch` where the VAE cannot take the latents' dtype. With `require_finite`,
    `NonFiniteValues` at the first chunk that has NaN or infinite values.
    """
    policy = Policy(
        strategy=strategy,
        frames_per_chunk=frames_per_chunk,
        budget_bytes=budget_bytes,
        exact_only=exact_only,
        require_finite=require_finite,
    )
    decoder = AdaptiveDecoder(vae, policy=policy, keeps_output=True, shares_costs=True)
    total = video_frames_of(vae, latents.shape[2])
    return join_chunks(decoder.frames(latents, **decode_kwargs), total)


def stream_decode(
    vae: Any, latents: Tensor, *, frames_per_chunk: int, **decode_kwargs: Any
) -> Iterator[Tensor]:
    """Decode `latents` (`[B, C, T, h, w]`) in chunks of exactly `frames_per_chunk` latent frames.

    Yields `[B, C, f, H, W]` in order, in the VAE's range, on its device. `frames_per_chunk >= T` is one call
    with one result. The peak is that of `predict_peak` if the caller drops each part before it asks for the
    next. There is no plan and no retry: an out-of-memory raises torch's own error. Raises `ValueError` for
    `frames_per_chunk` below 1 and for latents that require a gradient, and `UnsupportedVae` where the VAE
    cannot stream.
    """
    if frames_per_chunk < 1:
        raise ValueError(f"frames_per_chunk must be at least 1, got {frames_per_chunk}")
    refuse_gradient("decode", latents, decode_kwargs)
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
    """The plan that `decode` would make now for latents of this shape (`[B, C, T, h, w]`).

    The arguments are those of `decode`. Runs the VAE's offload hook first, as `decode` does: weights that it
    moves change what is free. Raises `DoesNotFit` and `UnsupportedVae` as `decode` does.
    """
    policy = Policy(
        strategy=strategy,
        frames_per_chunk=frames_per_chunk,
        budget_bytes=budget_bytes,
        exact_only=exact_only,
    )
    decoder = AdaptiveDecoder(vae, policy=policy, shares_costs=True)
    return decoder.begin().plan(LatentShape(*latent_shape))
