"""Families: what is known of each VAE, one file a family and one line here.

Owns the registry. `traits_of` needs names and numbers alone and works without torch; engines are made from a
live VAE. A VAE that is not listed is treated as unknown: it is decoded in one call, nothing else is promised.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from importlib import import_module
from typing import Any

from adaptive.errors import UnsupportedVae
from adaptive.families.shared.family import Family
from adaptive.types import VaeTraits

__all__ = ["Family", "family_of", "family_of_class", "traits_of"]

_REGISTRY = {
    "AutoencoderKL": "kl",
    "AutoencoderKLCogVideoX": "cogvideox",
    "AutoencoderKLCosmos": "cosmos",
    "AutoencoderKLHunyuanVideo": "hunyuanvideo",
    "AutoencoderKLHunyuanVideo15": "hunyuanvideo15",
    "AutoencoderKLLTX2Video": "ltx2",
    "AutoencoderKLMagvit": "magvit",
    "AutoencoderKLMochi": "mochi",
    "AutoencoderKLQwenImage": "qwenimage",
    "AutoencoderKLTemporalDecoder": "temporal_decoder",
    "AutoencoderKLLTXVideo": "ltx",
    "AutoencoderKLWan": "wan",
}


def family_of(vae: Any) -> Family:
    """Family of a live VAE, by the name of its class; the family of unknown VAEs where it is not listed.

    `UnsupportedVae` for one that `torch.compile` wrapped: it is no VAE any more, and hides which one it was.
    """
    name = type(vae).__name__
    if name == "OptimizedModule":
        inside = type(vae._orig_mod).__name__
        raise UnsupportedVae(inside, "being wrapped by torch.compile: use vae.compile(), or vae._orig_mod")
    return family_of_class(name)


@cache
def family_of_class(vae_class: str) -> Family:
    """Family of a VAE class, by name."""
    module = import_module(f"adaptive.families.{_REGISTRY.get(vae_class, 'shared.unknown')}")
    family: Family = module.FAMILY
    return family


def traits_of(vae_class: str, config: Mapping[str, Any]) -> VaeTraits:
    """Traits of a VAE from the name of its class and the numbers of its configuration (diffusers'
    `config.json`)."""
    return family_of_class(vae_class).traits(vae_class, config)
