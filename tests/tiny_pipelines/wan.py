"""Wan: a thin pipeline of random weights."""

from __future__ import annotations

from typing import Any

from tiny_pipelines.shared import TEXT_WIDTH, clip_images, clip_vision, t5_config, t5_tokenizer


def build(**transformer_config: Any) -> Any:
    from diffusers import (
        AutoencoderKLWan,
        FlowMatchEulerDiscreteScheduler,
        WanImageToVideoPipeline,
        WanTransformer3DModel,
    )
    from transformers import UMT5Config, UMT5EncoderModel

    vae = AutoencoderKLWan(
        base_dim=4,
        z_dim=16,
        dim_mult=[1, 1, 1, 1],
        num_res_blocks=1,
        temperal_downsample=[False, True, True],
    )
    transformer = WanTransformer3DModel(
        patch_size=(1, 2, 2),
        num_attention_heads=2,
        attention_head_dim=12,
        in_channels=36,
        out_channels=16,
        text_dim=TEXT_WIDTH,
        freq_dim=32,
        ffn_dim=32,
        num_layers=1,
        **{"image_dim": 16, **transformer_config},
    )
    return WanImageToVideoPipeline(
        tokenizer=t5_tokenizer(),
        text_encoder=UMT5EncoderModel(t5_config(UMT5Config)),
        vae=vae,
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        image_processor=clip_images(),
        image_encoder=clip_vision(False),
        transformer=transformer,
    )
