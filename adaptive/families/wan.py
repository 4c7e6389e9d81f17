"""Wan 2.1 and 2.2: causal convolutions whose caches the decoder itself can carry from call to call.

diffusers calls the decoder with one latent frame at a time. The caches are right for any number of frames a
call once the first latent frame, which gives a single video frame, has gone through alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from adaptive.errors import UnsupportedVae
from adaptive.families.shared.family import Family
from adaptive.types import VaeTraits

if TYPE_CHECKING:
    from torch import Tensor

    from adaptive.stream.engines.engine import Engine, State

_PREFIX = "Wan"  # of its layers' names


class WanFamily(Family):
    """AutoencoderKLWan."""

    name = "wan"

    def traits(self, vae_class: str, config: Mapping[str, Any]) -> VaeTraits:
        """The configuration names both ratios (patching included)."""
        return VaeTraits(
            family=self.name,
            vae_class=vae_class,
            latent_channels=config.get("z_dim", 16),
            spatial_ratio=config.get("scale_factor_spatial") or 8,
            temporal_ratio=config.get("scale_factor_temporal") or 4,
            first_frame_alone=True,
            exact_streaming=True,
            frames_independent=False,
        )

    def video_channels(self, config: Mapping[str, Any]) -> int:
        """Wan 2.2's decoder gives patches of pixels as channels."""
        return int(config.get("out_channels", 3)) // (config.get("patch_size") or 1) ** 2

    def decode_engine(self, vae: Any, kwargs: Mapping[str, Any]) -> Engine:
        """The decoder with caches that belong to the stream."""
        if type(vae.decoder).__name__ != "WanDecoder3d":
            raise UnsupportedVae(type(vae).__name__, f"streaming through a {type(vae.decoder).__name__}")
        if kwargs:
            raise UnsupportedVae(type(vae).__name__, f"decoding with {', '.join(kwargs)}")
        return _decode_engine(vae)

    def encode_engine(self, vae: Any, kwargs: Mapping[str, Any]) -> Engine:
        """The encoder with caches that belong to the stream."""
        if type(vae.encoder).__name__ != "WanEncoder3d" or kwargs:
            raise UnsupportedVae(type(vae).__name__, "encoding in chunks like this")
        return _encode_engine(vae, self.traits(type(vae).__name__, vae.config).temporal_ratio)


def _decode_engine(vae: Any) -> Engine:
    from diffusers.models.autoencoders.autoencoder_kl_wan import unpatchify

    from adaptive.stream.engines.cached import CachedEngine
    from adaptive.stream.engines.stages import stages_of
    from adaptive.stream.layers.causal import CausalLayers

    def run(chunk: Tensor, caches: Any, place: list[int], *, first: bool) -> Tensor:
        """What diffusers' `AutoencoderKLWan._decode` does in its loop."""
        latents = vae.post_quant_conv(chunk)
        frames: Tensor = vae.decoder(latents, feat_cache=caches, feat_idx=place, first_chunk=first)
        if vae.config.patch_size is not None:
            frames = unpatchify(frames, patch_size=vae.config.patch_size)
        return frames.clamp_(-1.0, 1.0)

    layers = CausalLayers(vae.decoder, _PREFIX)
    return CachedEngine(run, stages=stages_of(vae.decoder), layers=layers)


def _encode_engine(vae: Any, temporal_ratio: int) -> Engine:
    from diffusers.models.autoencoders.autoencoder_kl_wan import patchify

    from adaptive.stream.engines.engine import CallEngine, whole_groups
    from adaptive.stream.layers.causal import CausalLayers

    layers = CausalLayers(vae.encoder, _PREFIX)

    class WanEncode(CallEngine):
        """What diffusers' `AutoencoderKLWan._encode` does in its loop, with any number of latent frames a
        call.
        """

        def take(self, position: int, wanted: int, total: int) -> int:
            """The first frame goes alone, then whole latent frames."""
            return whole_groups(position, wanted, total, temporal_ratio)

        def call(self, state: State, chunk: Tensor) -> tuple[Tensor, State]:
            """The encoder replaces entries of the caches and never changes one."""
            caches = list(state.get("caches", [None] * vae._cached_conv_counts["encoder"]))
            if vae.config.patch_size is not None:
                chunk = patchify(chunk, patch_size=vae.config.patch_size)
            with layers.lean():
                encoded = vae.encoder(chunk, feat_cache=caches, feat_idx=[0])
            return vae.quant_conv(encoded), {"caches": caches}

    return WanEncode()


FAMILY = WanFamily()
