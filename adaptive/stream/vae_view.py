"""What a VAE is at the moment of one decode or encode: read once, for the planner and the stream.

A VAE changes between calls: it is moved, cast, compiled, offloaded. So nothing about it is kept from one call
to the next, and within one call nothing is read twice: what was planned is what runs. Owns which arguments
count, and whether there is an engine for them. It does not know memory or plans.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from adaptive.errors import UnsupportedVae
from adaptive.families import Family, family_of
from adaptive.stream.engines.engine import Engine, StripwiseEngine
from adaptive.stream.offload import execution_device, unsplit
from adaptive.types import VaeTraits


@dataclass(frozen=True, slots=True, eq=False)
class VaeView:
    """One VAE and the arguments of one decode, or of one encode.

    `kwargs` are those of `vae.decode` or `vae.encode`, with tensors on `device`. `refusal` says why the VAE
    cannot stream with them; None if it can. `has_strips`: it decodes in strips of frames, too. An engine
    takes hold of the VAE's layers when its stream opens, so a view changes nothing.
    """

    vae: Any
    family: Family
    traits: VaeTraits
    device: torch.device
    dtype: torch.dtype
    kwargs: Mapping[str, Any]
    has_strips: bool
    refusal: UnsupportedVae | None
    called: Any  # the VAE that computes a whole input: see `unsplit`
    _make: Callable[[], Engine]
    _ready: list[Engine]  # the engine that the view was made with, until a stream takes it

    def streaming_engine(self) -> Engine:
        """An engine for one stream, which opens and closes it. Raises the reason where there is none."""
        if self.refusal is not None:
            raise self.refusal
        try:
            return self._ready.pop()
        except IndexError:
            return self._make()

    def check_strips(self) -> None:
        """Raise `UnsupportedVae` unless the VAE decodes in strips of frames with these arguments."""
        if not self.has_strips:
            raise UnsupportedVae(type(self.vae).__name__, "exact decoding in strips of a frame")

    def video_frames(self, latent_frames: int) -> int:
        """Number of video frames that `latent_frames` decode to."""
        return self.family.video_frames(self.traits, latent_frames)


def view_of(vae: Any, decode_kwargs: Mapping[str, Any] | None = None) -> VaeView:
    """The VAE as it is now, for a decode with these keyword arguments of `vae.decode`.

    Arguments that are None count as not given. Raises `UnsupportedVae` for a VAE that `torch.compile`
    wrapped.
    """
    return _view(vae, decode_kwargs, family_of(vae).decode_engine, "decoding")


def encode_view_of(vae: Any, encode_kwargs: Mapping[str, Any] | None = None) -> VaeView:
    """The VAE as it is now, for an encode with these keyword arguments of `vae.encode`; see `view_of`."""
    return _view(vae, encode_kwargs, family_of(vae).encode_engine, "encoding")


def _view(
    vae: Any,
    given: Mapping[str, Any] | None,
    engine_of: Callable[[Any, Mapping[str, Any]], Engine],
    action: str,
) -> VaeView:
    family = family_of(vae)
    device = execution_device(vae)
    kwargs = given_arguments(given or {}, device)

    called = unsplit(vae) if family.is_known else vae

    def make() -> Engine:
        try:
            return engine_of(called, kwargs)
        except (AttributeError, LookupError, TypeError) as error:  # parts of the VAE were replaced
            reason = f"{action} in chunks: it has other parts: {error!r}"
            raise UnsupportedVae(type(vae).__name__, reason) from None

    ready: list[Engine] = []
    refusal = None
    try:
        ready.append(make())
    except UnsupportedVae as error:
        refusal = error.with_traceback(None)  # else it would keep this frame, and with it the VAE, alive
    has_strips = any(isinstance(engine, StripwiseEngine) for engine in ready)
    traits = family.traits(type(vae).__name__, vae.config)
    return VaeView(vae, family, traits, device, vae.dtype, kwargs, has_strips, refusal, called, make, ready)


def as_view(vae: Any, decode_kwargs: Mapping[str, Any]) -> VaeView:
    """`view_of` a VAE, or `vae` itself where it is a view already."""
    return vae if isinstance(vae, VaeView) else view_of(vae, decode_kwargs)


def as_encode_view(vae: Any, encode_kwargs: Mapping[str, Any]) -> VaeView:
    """`encode_view_of` a VAE, or `vae` itself where it is a view already."""
    return vae if isinstance(vae, VaeView) else encode_view_of(vae, encode_kwargs)


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
