"""VAE families: traits and streaming engines of each VAE; one file a family, and one registry line here.

`traits_of` needs a class name and a configuration alone and works without torch; engines are made from a live
VAE. A VAE that is not in the registry belongs to the unknown family: it is decoded by its own call, with the
settings that its owner made. `shared` has what several families use.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from functools import cache
from importlib import import_module
from typing import Any

from adaptive.errors import UnsupportedVae
from adaptive.families.shared.family import Family
from adaptive.types import VaeTraits

__all__ = ["Family", "family_of", "family_of_class", "family_of_type", "traits_of"]

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


# Methods of a VAE class that its family relies on. A subclass that defines one of them is another VAE.
_RELIED_ON = frozenset({"decode", "_decode", "encode", "_encode", "forward"})


def family_of(vae: Any) -> Family:
    """Family of a live VAE, see `family_of_type`.

    Raises `UnsupportedVae` for a VAE that `torch.compile` wrapped: the wrapper hides its class.
    """
    if type(vae).__name__ == "OptimizedModule":
        inside = type(vae._orig_mod).__name__
        raise UnsupportedVae(inside, "being wrapped by torch.compile: use vae.compile(), or vae._orig_mod")
    return family_of_type(type(vae))


def family_of_type(vae_class: type) -> Family:
    """Family of a VAE class: that of the first class in its method resolution order that is in the registry.

    The unknown family where none is, where a class before it defines a method that the family relies on, and
    where a class only shares its name with one of diffusers.
    """
    for parent in vae_class.__mro__:
        if parent.__name__ in _REGISTRY and not _shares_only_the_name(parent):
            return family_of_class(parent.__name__)
        if _RELIED_ON & vars(parent).keys():
            break
    return family_of_class("")


def _shares_only_the_name(vae_class: type) -> bool:
    """Whether diffusers has another class of this name. Its module need not be imported to know this: a live
    class of diffusers has imported it.
    """
    diffusers = sys.modules.get("diffusers")
    published = getattr(diffusers, vae_class.__name__, vae_class)
    return published is not vae_class


@cache
def family_of_class(vae_class: str) -> Family:
    """Family of a VAE class, by name."""
    module = import_module(f"adaptive.families.{_REGISTRY.get(vae_class, 'shared.unknown')}")
    family: Family = module.FAMILY
    return family


def traits_of(vae_class: str, config: Mapping[str, Any]) -> VaeTraits:
    """Traits of a VAE from its class name and its configuration (diffusers' `config.json`)."""
    return family_of_class(vae_class).traits(vae_class, config)
