"""What a VAE is at the moment of one decode: read once, then given to the planner and to the stream.

A VAE changes between decodes: it is moved, cast, compiled, offloaded. So nothing about it is kept from one
decode to the next, and within one decode nothing is read twice: the decode that was planned is the one that
runs. Owns which arguments count, and whether there is an engine for them. It does not know memory or plans.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from adaptive.errors import UnsupportedVae
from adaptive.families import Family, family_of
from adaptive.stream.engines.engine import Engine, StripwiseEngine
from adaptive.stream.offload import execution_device
from adaptive.types import VaeTraits


@dataclass(frozen=True, slots=True, eq=False)
class VaeView:
    """One VAE and the arguments of one decode.

    `kwargs` are those of `vae.decode`, with tensors on `device`. `refusal` says why the VAE cannot stream
    with them; None if it can. `has_strips`: it streams in strips of frames, too. The view holds no engine,
    because an engine changes the VAE's layers as long as it is open.
    """

    vae: Any
    family: Family
    traits: VaeTraits
    device: torch.device
    dtype: torch.dtype
    kwargs: Mapping[str, Any]
    has_strips: bool
    refusal: UnsupportedVae | None

    def streaming_engine(self) -> Engine:
        """An engine for one stream, which closes it. Raises the reason where there is none."""
        if self.refusal is not None:
            raise self.refusal
        return _engine(self.vae, self.family, self.kwargs)

    def video_frames(self, latent_frames: int) -> int:
        """Number of video frames that `latent_frames` decode to."""
        return self.family.video_frames(self.traits, latent_frames)


def view_of(vae: Any, decode_kwargs: Mapping[str, Any] | None = None) -> VaeView:
    """The VAE as it is now, for a decode with these keyword arguments of `vae.decode`.

    Arguments that are None count as not given. Raises `UnsupportedVae` for a VAE that `torch.compile`
    wrapped.
    """
    family = family_of(vae)
    device = execution_device(vae)
    kwargs = given_arguments(decode_kwargs or {}, device)
    has_strips, refusal = False, None
    try:
        with closing(_engine(vae, family, kwargs)) as engine:
            has_strips = isinstance(engine, StripwiseEngine)
    except UnsupportedVae as error:
        refusal = error.with_traceback(None)  # else it would keep this frame, and with it the VAE, alive
    traits = family.traits(type(vae).__name__, vae.config)
    return VaeView(vae, family, traits, device, vae.dtype, kwargs, has_strips, refusal)


def _engine(vae: Any, family: Family, kwargs: Mapping[str, Any]) -> Engine:
    try:
        return family.decode_engine(vae, kwargs)
    except (AttributeError, LookupError, TypeError) as error:  # parts of the VAE were replaced
        reason = f"decoding in chunks: it has other parts: {error!r}"
        raise UnsupportedVae(type(vae).__name__, reason) from None


def encodes_in_chunks(vae: Any, encode_kwargs: Mapping[str, Any] | None = None) -> bool:
    """Whether the VAE as it is now can encode in chunks, with these keyword arguments of `vae.encode`."""
    kwargs = {name: value for name, value in (encode_kwargs or {}).items() if value is not None}
    try:
        family_of(vae).encode_engine(vae, kwargs).close()
    except (UnsupportedVae, AttributeError, LookupError, TypeError):  # the last three: parts were replaced
        return False
    return True


def as_view(vae: Any, decode_kwargs: Mapping[str, Any]) -> VaeView:
    """`view_of` a VAE, or `vae` itself where it is a view already."""
    return vae if isinstance(vae, VaeView) else view_of(vae, decode_kwargs)


def video_frames_of(vae: Any, latent_frames: int) -> int | None:
    """Number of video frames that `latent_frames` decode to; None for a VAE that nothing is known about."""
    family = family_of(vae)
    return family.video_frames(family.traits_of(vae), latent_frames) if family.is_known else None


def given_arguments(kwargs: Mapping[str, Any], device: torch.device) -> dict[str, Any]:
    """`kwargs` with their tensors on `device`, without those that are None, and without `return_dict`, which
    the caller cannot choose.
    """
    return {
        name: value.to(device) if isinstance(value, Tensor) else value
        for name, value in kwargs.items()
        if value is not None and name != "return_dict"
    }
