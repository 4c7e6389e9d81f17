"""The denoiser of `photo-pan`: the exact velocity of flow matching towards the clip that conditions it."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from torch import Tensor, nn

STEPS_OF_TIME = 1000
LEAST_SIGMA = 1e-3


class PhotoPanDenoiser(ModelMixin, ConfigMixin):  # type: ignore[misc]
    """Predicts the velocity (noise - latents) of noisy latents, from those of the clip itself.

    As in other image-to-video models, `in_channels` are the noisy latents' channels and then those of the
    condition. Here the condition is the whole clip, so the velocity is exact at every noise level.
    """

    @register_to_config  # type: ignore[untyped-decorator]
    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        if in_channels != 2 * out_channels:
            raise ValueError(f"in_channels must be twice out_channels, got {in_channels} and {out_channels}")
        self.gain = nn.Parameter(torch.ones(out_channels))

    def forward(self, hidden_states: Tensor, timestep: Tensor, return_dict: bool = True) -> Any:
        """`hidden_states` [B, 2C, T, h, w]: noisy latents, condition. `timestep`: 1000 times the noise level.

        Returns the velocity [B, C, T, h, w], as a tuple without `return_dict`.
        """
        noisy, clean = hidden_states.chunk(2, dim=1)
        sigma = (timestep.to(noisy.dtype) / STEPS_OF_TIME).clamp_min(LEAST_SIGMA).view(-1, 1, 1, 1, 1)
        velocity = (noisy - clean * self.gain.view(1, -1, 1, 1, 1)) / sigma
        return {"sample": velocity} if return_dict else (velocity,)
