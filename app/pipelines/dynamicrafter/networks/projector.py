"""The image projector: CLIP's tokens of the input image -> sixteen context tokens for each frame.

Wraps diffusers' Perceiver resampler as a component that a pipeline can save and load.
"""

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.embeddings import IPAdapterPlusImageProjection
from diffusers.models.modeling_utils import ModelMixin


class DynamiCrafterImageProjector(ModelMixin, ConfigMixin):  # type: ignore[misc]  # diffusers is untyped
    """A Perceiver resampler with `num_queries` learned queries: 16 for each of 16 frames, frame by frame."""

    @register_to_config  # type: ignore[untyped-decorator]
    def __init__(
        self,
        embed_dims: int = 1280,
        output_dims: int = 1024,
        hidden_dims: int = 1024,
        depth: int = 4,
        dim_head: int = 64,
        heads: int = 12,
        num_queries: int = 256,
        ffn_ratio: int = 4,
    ) -> None:
        super().__init__()
        self.resampler = IPAdapterPlusImageProjection(
            embed_dims=embed_dims,
            output_dims=output_dims,
            hidden_dims=hidden_dims,
            depth=depth,
            dim_head=dim_head,
            heads=heads,
            num_queries=num_queries,
            ffn_ratio=ffn_ratio,
        )

    def forward(self, image_tokens: torch.Tensor) -> torch.Tensor:
        """`[B, tokens, embed_dims]` -> `[B, num_queries, output_dims]`."""
        projected: torch.Tensor = self.resampler(image_tokens)
        return projected
