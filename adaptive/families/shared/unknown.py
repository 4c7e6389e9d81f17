"""The family of VAE classes that are not in the registry: `traits_of` guesses the shapes from the usual
option names, and a decode is one call with the settings that the VAE has.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from adaptive.families.shared.family import Family
from adaptive.types import VaeTraits


class UnknownFamily(Family):
    """Any other class; batched decoding only. Some of these VAEs decode only in tiles (Allegro)."""

    is_known = False

    def traits(self, vae_class: str, config: Mapping[str, Any]) -> VaeTraits:
        """A guess: latent channels and ratios from the names that configurations commonly use."""
        blocks = config.get("block_out_channels") or config.get("decoder_block_out_channels") or (0, 0, 0, 0)
        spatial = _first(config, "spatial_compression_ratio", "scale_factor_spatial", "spatial_compression")
        temporal = _first(
            config, "temporal_compression_ratio", "scale_factor_temporal", "temporal_compression"
        )
        return VaeTraits(
            family=self.name,
            vae_class=vae_class,
            latent_channels=_first(config, "latent_channels", "z_dim") or 4,
            spatial_ratio=spatial or 2 ** (len(blocks) - 1),
            temporal_ratio=temporal or 1,
            first_frame_alone=(temporal or 1) > 1,
            exact_streaming=False,
            frames_independent=False,
        )


def _first(config: Mapping[str, Any], *names: str) -> int | None:
    return next((int(config[name]) for name in names if config.get(name)), None)


FAMILY = UnknownFamily()
