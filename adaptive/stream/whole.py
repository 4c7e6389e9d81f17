"""Decode latents by one call of the VAE, with the settings that a stream has.

Owns these settings. The family makes the call (see `adaptive.families`).
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor

from adaptive.families import Family, family_of
from adaptive.stream.engines.noise import noise_kept_at_failure
from adaptive.stream.inputs import dtype_explained
from adaptive.stream.layers.convolution import convolutions_for
from adaptive.stream.offload import execution_device, without_splitting
from adaptive.stream.vae_view import VaeView, given_arguments


def decode_whole(vae: Any, latents: Tensor, **decode_kwargs: Any) -> Tensor:
    """Decode `latents` (`[B, C, T, h, w]`) by a single call of diffusers' own `decode`.

    Slicing, tiling and framewise decoding are off meanwhile, except in a VAE that nothing is known about.
    Convolutions are chosen as in a stream. `vae` may be a `VaeView`, which has the arguments already.
    Returns `[B, C, F, H, W]` in the VAE's own range. Takes and raises what `vae.decode` does.
    """
    if isinstance(vae, VaeView):
        return _whole(vae.vae, vae.family, latents.to(vae.device), vae.kwargs)
    device = execution_device(vae)
    return _whole(vae, family_of(vae), latents.to(device), given_arguments(decode_kwargs, device))


def _whole(vae: Any, family: Family, latents: Tensor, kwargs: Mapping[str, Any]) -> Tensor:
    whole = without_splitting(vae) if family.is_known else nullcontext(vae)
    with (
        torch.no_grad(),
        whole as called,
        noise_kept_at_failure(latents.device),
        convolutions_for(latents.device),
        dtype_explained(vae, "latents", latents),
    ):
        return family.decode_whole(called, latents, kwargs)
