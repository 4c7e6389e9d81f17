"""The normalisation of latents between a model and its VAE: mean, standard deviation and factor.

diffusers' pipelines denoise `(latents - mean) * factor / std` and invert that before decoding. The numbers
are buffers of the VAE (LTX) or part of its configuration (the others).
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Self

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class LatentScale:
    """`mean` and `std` have one number a channel, or are empty for 0 and 1.

    Raises `ValueError` for a zero factor or standard deviation.
    """

    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    factor: float = 1.0

    def __post_init__(self) -> None:
        if not self.factor or not all(self.std):
            raise ValueError(f"std and factor must not be zero, got std {self.std}, factor {self.factor}")

    @classmethod
    def of(cls, vae: Any) -> Self:
        """The numbers that diffusers' pipelines use with this VAE."""
        shift = vae.config.get("shift_factor")
        mean = _numbers(vae, "latents_mean") or (() if shift is None else (float(shift),))
        return cls(mean, _numbers(vae, "latents_std"), float(vae.config.get("scaling_factor") or 1.0))

    @property
    def kind(self) -> str:
        """ "per_channel", "scaling_factor" or "none", as files of latents name it."""
        if any(self.mean) or any(each != 1 for each in self.std):
            return "per_channel"
        return "none" if self.factor == 1 else "scaling_factor"

    def normalised(self, latents: Tensor) -> Tensor:
        """Convert the VAE's latents `[B, C, T, h, w]` to the model's; computes in float32 or wider."""
        mean, std = self._tensors(latents)
        return ((latents - mean) * (self.factor / std)).to(latents.dtype)

    def restored(self, latents: Tensor) -> Tensor:
        """Convert the model's latents to the VAE's: the inverse of `normalised`."""
        mean, std = self._tensors(latents)
        return (latents * (std / self.factor) + mean).to(latents.dtype)

    def as_json(self) -> dict[str, Any]:
        """The numbers as JSON values; `from_json` is the inverse."""
        return asdict(self)

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Self:
        """The inverse of `as_json`."""
        return cls(tuple(value["mean"]), tuple(value["std"]), float(value["factor"]))

    def _tensors(self, latents: Tensor) -> tuple[Tensor, Tensor]:
        dtype = torch.promote_types(latents.dtype, torch.float32)
        mean, std = (
            torch.tensor(values or (neutral,), dtype=dtype, device=latents.device).view(1, -1, 1, 1, 1)
            for values, neutral in ((self.mean, 0.0), (self.std, 1.0))
        )
        return mean, std


def _numbers(vae: Any, name: str) -> tuple[float, ...]:
    found = dict(vae.named_buffers(recurse=False)).get(name, vae.config.get(name))
    return () if found is None else tuple(torch.as_tensor(found, dtype=torch.float64).flatten().tolist())
