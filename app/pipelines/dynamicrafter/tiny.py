"""A complete DynamiCrafter pipeline with random weights, a few hundred kilobytes, for tests.

Owns only the small sizes: components, code paths and call are those of the real models.
"""

from typing import Any

import torch

from app.pipelines.dynamicrafter.components import build_components, build_scheduler, component_configs
from app.pipelines.dynamicrafter.pipeline import DynamiCrafterPipeline
from app.pipelines.dynamicrafter.tokenizer import tokenizer_from_merges

_GROUPS = 4
_CONTEXT = 16


def tiny_configs() -> dict[str, dict[str, Any]]:
    """Overrides of the published component configurations that make every component tiny."""
    vocabulary = len(tokenizer_from_merges([]))
    return {
        "unet": {
            "block_out_channels": (8, 8, 8, 8),
            "layers_per_block": 1,
            "norm_num_groups": _GROUPS,
            "cross_attention_dim": _CONTEXT,
            "attention_head_dim": 4,
        },
        "vae": {"block_out_channels": (8, 8, 8, 8), "layers_per_block": 1, "norm_num_groups": _GROUPS},
        "text_encoder": {
            "vocab_size": vocabulary,
            "hidden_size": _CONTEXT,
            "intermediate_size": 4 * _CONTEXT,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "bos_token_id": vocabulary - 2,
            "eos_token_id": vocabulary - 1,
        },
        "image_encoder": {
            "hidden_size": 16,
            "intermediate_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "patch_size": 16,
            "image_size": 32,
        },
        "image_projector": {
            "embed_dims": 16,
            "output_dims": _CONTEXT,
            "hidden_dims": 16,
            "depth": 1,
            "dim_head": 8,
            "heads": 2,
        },
    }


def build_tiny_pipeline(resolution: int = 512, seed: int = 0) -> DynamiCrafterPipeline:
    """A tiny pipeline with the scheduler, conditioning and defaults of the model of `resolution`.

    Use it at 64x64 or 128x64: the published sizes work, but are slow. The same seed gives the same weights;
    torch's global generator does not change.
    """
    configs = component_configs(resolution, tiny_configs())
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        components: dict[str, Any] = dict(build_components(configs))
    for component in components.values():
        component.requires_grad_(False).eval()
    return DynamiCrafterPipeline(
        **components,
        tokenizer=tokenizer_from_merges([]),
        scheduler=build_scheduler(configs),
        resolution=resolution,
    )
