"""Wan 2.1 and 2.2: causal convolutions whose caches the networks carry from call to call. Serves
`AutoencoderKLWan`.

Wan 2.2 works on patches: a pixel of the decoder's output holds the pixels of a patch as channels.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from adaptive.families.shared.cached_family import CachedFamily
from adaptive.families.shared.traits import Config, TraitsFromConfig, option

if TYPE_CHECKING:
    from torch import Tensor


class WanFamily(CachedFamily):
    """`AutoencoderKLWan`; both ratios in the configuration include the patches."""

    name = "wan"
    layer_prefix = "Wan"
    traits_from_config = TraitsFromConfig(
        latent_channels=option("z_dim", 16),
        spatial_ratio=option("scale_factor_spatial", 8),
        temporal_ratio=option("scale_factor_temporal", 4),
    )

    def video_channels(self, config: Config) -> int:
        """Channels of the video, from those of the patches."""
        return int(config.get("out_channels", 3)) // (config.get("patch_size") or 1) ** 2

    def decode_chunk(self, vae: Any, chunk: Tensor, caches: Any, place: list[int], *, first: bool) -> Tensor:
        """As the loop of diffusers' `AutoencoderKLWan._decode` does."""
        from diffusers.models.autoencoders.autoencoder_kl_wan import unpatchify

        latents = vae.post_quant_conv(chunk)
        frames: Tensor = vae.decoder(latents, feat_cache=caches, feat_idx=place, first_chunk=first)
        if vae.config.patch_size is not None:
            frames = unpatchify(frames, patch_size=vae.config.patch_size)
        return frames.clamp_(-1.0, 1.0)

    def encode_chunk(self, vae: Any, chunk: Tensor, caches: Any, place: list[int], *, first: bool) -> Tensor:
        """As the loop of diffusers' `AutoencoderKLWan._encode` does."""
        from diffusers.models.autoencoders.autoencoder_kl_wan import patchify

        if vae.config.patch_size is not None:
            chunk = patchify(chunk, patch_size=vae.config.patch_size)
        return super().encode_chunk(vae, chunk, caches, place, first=first)


FAMILY = WanFamily()
