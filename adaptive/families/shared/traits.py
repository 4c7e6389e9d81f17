"""Traits from a configuration: which option of diffusers' `config.json` gives which number.

A family fills in one table, `TraitsFromConfig`. Pure arithmetic on names and numbers: imports no torch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from adaptive.types import VaeTraits

Config = Mapping[str, Any]


def option(name: str, default: Any) -> Callable[[Config], Any]:
    """The value of the option `name`, or `default` if the configuration has none."""

    def value(config: Config) -> Any:
        found = config.get(name)
        return default if found is None else found

    return value


def doubling_blocks(default_blocks: int, *, fewer: int = 1) -> Callable[[Config], int]:
    """A ratio that every block of `block_out_channels` doubles, except for `fewer` of them."""

    def ratio(config: Config) -> int:
        blocks = len(config.get("block_out_channels", range(default_blocks)))
        return int(2 ** (blocks - fewer))

    return ratio


def _always(_: Config) -> bool:
    return True


@dataclass(frozen=True, slots=True, kw_only=True)
class TraitsFromConfig:
    """How the traits of a family's VAEs follow from a configuration. For the fields see `VaeTraits`."""

    latent_channels: Callable[[Config], int]
    spatial_ratio: Callable[[Config], int]
    temporal_ratio: Callable[[Config], int]
    exact_streaming: Callable[[Config], bool] = _always
    first_frame_alone: bool = True
    frames_independent: bool = False
    chunks_apart: bool = False
    mask_numbers: float = 0.0

    def traits(self, family: str, vae_class: str, config: Config) -> VaeTraits:
        """Traits of a VAE of this class and configuration."""
        return VaeTraits(
            family=family,
            vae_class=vae_class,
            latent_channels=self.latent_channels(config),
            spatial_ratio=self.spatial_ratio(config),
            temporal_ratio=self.temporal_ratio(config),
            first_frame_alone=self.first_frame_alone,
            exact_streaming=bool(self.exact_streaming(config)),
            frames_independent=self.frames_independent,
            chunks_apart=self.chunks_apart,
            mask_numbers=self.mask_numbers,
        )


def named_ratios(
    latent_channels: int, spatial_ratio: int, temporal_ratio: int, *, mask_numbers: float = 0.0
) -> TraitsFromConfig:
    """Traits where the configuration names all three numbers; those given here are diffusers' defaults."""
    return TraitsFromConfig(
        latent_channels=option("latent_channels", latent_channels),
        spatial_ratio=option("spatial_compression_ratio", spatial_ratio),
        temporal_ratio=option("temporal_compression_ratio", temporal_ratio),
        mask_numbers=mask_numbers,
    )
