"""VAE families: traits and streaming engines of each VAE; one file a family, and one registry line here.

`traits_of` needs a class name and a configuration alone and works without torch; engines are made from a live
VAE. A VAE that is not in the registry belongs to the unknown family: it is decoded in one call. `shared` has
what several families use.
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
    """Family of a live VAE, by the name of its class; the unknown family if it is not in the registry.

    Raises `UnsupportedVae` for a VAE that `torch.compile` wrapped: the wrapper hides its class.
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
    """Traits of a VAE from its class name and its configuration (diffusers' `config.json`)."""
    return family_of_class(vae_class).traits(vae_class, config)
