"""Qwen-Image's VAE, also of its video relatives: the layers of Wan 2.1, causal convolutions with caches.
Serves `AutoencoderKLQwenImage`.
"""

from __future__ import annotations

from collections.abc import Sequence

from adaptive.families.shared.cached_family import CachedFamily
from adaptive.families.shared.traits import Config, TraitsFromConfig, option


def _doubles_time(config: Config) -> Sequence[bool]:
    """For each downsampling of space, whether it halves time too (the option is spelled like this)."""
    blocks: Sequence[bool] = config.get("temperal_downsample", (False, True, True))
    return blocks


class QwenImageFamily(CachedFamily):
    """`AutoencoderKLQwenImage`."""

    name = "qwenimage"
    layer_prefix = "QwenImage"
    traits_from_config = TraitsFromConfig(
        latent_channels=option("z_dim", 16),
        spatial_ratio=lambda config: 2 ** len(_doubles_time(config)),
        temporal_ratio=lambda config: 2 ** sum(_doubles_time(config)),
    )


FAMILY = QwenImageFamily()
