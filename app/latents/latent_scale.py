"""How a model's latents relate to its VAE's: mean, spread and factor, from the VAE's own numbers.

diffusers' pipelines denoise `(latents - mean) * factor / std` and undo that before they decode. Owns that
formula; the numbers are buffers of the VAE (LTX) or in its configuration (the others).
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Self

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class LatentScale:
    """`mean` and `std` hold one number a channel, or none where they are 0 and 1."""

    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    factor: float = 1.0

    def __post_init__(self) -> None:
        if not self.factor or not all(self.std):
            raise ValueError(f"latents cannot be divided by zero: std {self.std}, factor {self.factor}")

    @classmethod
    def of(cls, vae: Any) -> Self:
        """The numbers that diffusers' pipelines use with this VAE."""
        shift = vae.config.get("shift_factor")
        mean = _numbers(vae, "latents_mean") or (() if shift is None else (float(shift),))
        return cls(mean, _numbers(vae, "latents_std"), float(vae.config.get("scaling_factor") or 1.0))

    @property
    def kind(self) -> str:
        """What it does, in one word."""
        if any(self.mean) or any(each != 1 for each in self.std):
            return "per_channel"
        return "none" if self.factor == 1 else "scaling_factor"

    def normalised(self, latents: Tensor) -> Tensor:
        """`[B, C, T, h, w]` of the VAE as the model denoises them; computed in float32 at least."""
        mean, std = self._tensors(latents)
        return ((latents - mean) * (self.factor / std)).to(latents.dtype)

    def restored(self, latents: Tensor) -> Tensor:
        """The way back."""
        mean, std = self._tensors(latents)
        return (latents * (std / self.factor) + mean).to(latents.dtype)

    def as_json(self) -> dict[str, Any]:
        """The numbers, for a file."""
        return asdict(self)

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Self:
        """What `as_json` gave."""
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
