"""I2VGen-XL: a thin pipeline of random weights."""

from __future__ import annotations

from typing import Any

from app.pipelines.dynamicrafter.tokenizer import tokenizer_from_merges
from tiny_pipelines.shared import TEXT_WIDTH, clip_images, clip_text, clip_vision


def build() -> Any:
    from diffusers import AutoencoderKL, DDIMScheduler, I2VGenXLPipeline
    from diffusers.models.unets import I2VGenXLUNet

    tokenizer = tokenizer_from_merges([])
    vae = AutoencoderKL(
        block_out_channels=(8, 8, 8, 8),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        norm_num_groups=4,
        latent_channels=4,
    )
    unet = I2VGenXLUNet(
        block_out_channels=(4, 8),
        layers_per_block=1,
        norm_num_groups=2,
        down_block_types=("CrossAttnDownBlock3D", "DownBlock3D"),
        up_block_types=("UpBlock3D", "CrossAttnUpBlock3D"),
        cross_attention_dim=TEXT_WIDTH,
        attention_head_dim=4,
        num_attention_heads=None,
    )
    return I2VGenXLPipeline(
        vae=vae,
        text_encoder=clip_text(len(tokenizer)),
        tokenizer=tokenizer,
        image_encoder=clip_vision(True),
        feature_extractor=clip_images(),
        unet=unet,
        scheduler=DDIMScheduler(beta_schedule="linear", clip_sample=False, set_alpha_to_one=False),
    )
