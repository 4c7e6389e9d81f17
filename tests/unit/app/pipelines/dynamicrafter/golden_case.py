"""The golden case: a tiny checkpoint in the original layout, and what the original made of it."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from app.pipelines.dynamicrafter import DynamiCrafterPipeline

GOLDEN = Path(__file__).parents[5].parent / "shared" / "golden" / "dynamicrafter_512"


@dataclass(frozen=True)
class Golden:
    case: dict[str, Any]
    inputs: dict[str, torch.Tensor]
    expected: dict[str, torch.Tensor]
    pipeline: DynamiCrafterPipeline

    @property
    def run(self) -> dict[str, Any]:
        return self.case["run"]


def golden_configs(case: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The case's description of its widths, in the words of the components' configurations."""
    unet, vae, resampler = case["unet"], case["vae"], case["resampler"]
    text, vision = case["text_encoder"], case["vision_encoder"]
    return {
        "unet": {
            "block_out_channels": tuple(unet["model_channels"] * m for m in unet["channel_mult"]),
            "attention_head_dim": unet["num_head_channels"],
            "cross_attention_dim": unet["context_dim"],
        },
        "vae": {"block_out_channels": tuple(vae["ch"] * m for m in vae["ch_mult"])},
        "image_projector": {
            "embed_dims": resampler["embedding_dim"],
            "output_dims": resampler["output_dim"],
            "hidden_dims": resampler["dim"],
            "depth": resampler["depth"],
            "dim_head": resampler["dim_head"],
            "heads": resampler["heads"],
        },
        "text_encoder": {
            "vocab_size": text["vocab_size"],
            "hidden_size": text["width"],
            "intermediate_size": text["width"] * text["mlp_ratio"],
            "num_hidden_layers": text["layers_used"],
            "num_attention_heads": text["heads"],
            "bos_token_id": text["vocab_size"] - 2,
            "eos_token_id": text["vocab_size"] - 1,
        },
        "image_encoder": {
            "hidden_size": vision["width"],
            "intermediate_size": vision["width"] * vision["mlp_ratio"],
            "num_hidden_layers": vision["layers"],
            "num_attention_heads": vision["heads"],
            "patch_size": vision["patch_size"],
        },
    }
