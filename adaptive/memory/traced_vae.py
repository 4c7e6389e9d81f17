"""A VAE on torch's meta device, made from its configuration: no weights, and nothing is computed.

Owns what makes two such VAEs equal, and the latent size they are traced at. It does not know what is traced
(see `adaptive.memory.profile_trace`), devices or policies.
"""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from adaptive.families import Family, family_of_type
from adaptive.memory.profile import ITEM_BYTES
from adaptive.types import VaeTraits

# Latent height and width of the traced frames. Meta tensors cost nothing, and a real size keeps borders and
# small constants in proportion: between this size and 60 x 104 no family's bytes a latent pixel differ by
# more than 0.3 %, from 16 x 24 on by no more than 0.6 %.
TRACED = (32, 48)
# An attention mask over pairs of positions grows with the square of the area. It is counted separately, so it
# must not be the peak at the traced size.
TRACED_WITH_MASK = (16, 24)


def config_digest(config: Mapping[str, Any]) -> str:
    """Identity of a VAE's configuration; keys with a leading underscore (paths, versions) do not count."""
    own = {key: value for key, value in config.items() if not key.startswith("_")}
    return hashlib.sha256(json.dumps(own, sort_keys=True, default=str).encode()).hexdigest()[:16]


def dtype_name(dtype: torch.dtype | str) -> str:
    """ "float64", "float32", "float16" or "bfloat16"; `ValueError` for any other dtype."""
    name = str(dtype).removeprefix("torch.")
    if name not in ITEM_BYTES:
        raise ValueError(f"dtype must be one of {', '.join(ITEM_BYTES)}, got {dtype}")
    return name


class TracedVae:
    """A VAE on the meta device. Two are equal if their class, configuration and dtype are."""

    def __init__(self, vae_class: type, config: Mapping[str, Any], dtype: str) -> None:
        self.vae_class = vae_class
        self.config = config
        self.dtype = dtype
        self.digest = config_digest(config)
        self._module: Any = None

    def __eq__(self, other: object) -> bool:
        return isinstance(other, TracedVae) and self._identity == other._identity

    def __hash__(self) -> int:
        return hash(self._identity)

    @property
    def _identity(self) -> tuple[type, str, str]:
        return self.vae_class, self.digest, self.dtype

    @property
    def traits(self) -> VaeTraits:
        """Shape rules and abilities."""
        return self.family.traits(self.vae_class.__name__, self.config)

    @property
    def family(self) -> Family:
        """The class' family."""
        return family_of_type(self.vae_class)

    @property
    def module(self) -> Any:
        """The VAE itself, made at first use."""
        if self._module is None:
            with torch.device("meta"):
                module = self.vae_class.from_config(dict(self.config))  # type: ignore[attr-defined]
            # diffusers' own `to` warns about casts that its `torch_dtype` makes as well. Some parameters
            # ignore the default device (`torch.Tensor([...])` in its AlphaBlender).
            self._module = nn.Module.to(module.eval(), "meta", getattr(torch, self.dtype))
        return self._module

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the latents that profiles are traced at."""
        return TRACED_WITH_MASK if self.traits.mask_numbers else TRACED

    def decode_kwargs(self) -> dict[str, Any]:
        """Arguments beside the latents that `vae.decode` of this family needs, on the meta device."""
        _, kwargs = self.family.self_test_case(self.module)
        return {key: value.to("meta") if hasattr(value, "to") else value for key, value in kwargs.items()}
