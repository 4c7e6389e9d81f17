"""HunyuanVideo 1.0: a thin pipeline of random weights."""

from __future__ import annotations

from typing import Any

from app.pipelines.dynamicrafter.tokenizer import tokenizer_from_merges
from tiny_pipelines.shared import LETTERS, TEXT_WIDTH, clip_images, clip_text, clip_vision


def build() -> Any:
    from diffusers import (
        AutoencoderKLHunyuanVideo,
        FlowMatchEulerDiscreteScheduler,
        HunyuanVideoImageToVideoPipeline,
        HunyuanVideoTransformer3DModel,
    )
    from transformers import LlamaConfig, LlamaTokenizer, LlavaConfig, LlavaForConditionalGeneration

    special = ["<unk>", "<s>", "</s>", "<pad>", "<image>", "<|start_header_id|>", "<|end_header_id|>"]
    special.append("<|eot_id|>")
    vocabulary = {token: number for number, token in enumerate([*special, *LETTERS, "\n"])}
    tokenizer = LlamaTokenizer(
        vocab=vocabulary, pad_token="<pad>", padding_side="right", model_max_length=900
    )
    tokenizer.add_special_tokens({"additional_special_tokens": special[4:]})
    text = LlamaConfig(
        vocab_size=len(vocabulary),
        hidden_size=TEXT_WIDTH,
        intermediate_size=32,
        num_hidden_layers=3,
        num_attention_heads=2,
        pad_token_id=3,
    )
    vision = clip_vision(False, 384).config
    llava = LlavaConfig(vision_config=vision, text_config=text, image_token_index=4, pad_token_id=3)
    clip_tokenizer = tokenizer_from_merges([])
    vae = AutoencoderKLHunyuanVideo(
        latent_channels=4,
        block_out_channels=(8, 8, 8, 8),
        layers_per_block=1,
        norm_num_groups=4,
    )
    transformer = HunyuanVideoTransformer3DModel(
        in_channels=9,
        out_channels=4,
        num_attention_heads=2,
        attention_head_dim=10,
        num_layers=1,
        num_single_layers=1,
        num_refiner_layers=1,
        guidance_embeds=False,
        text_embed_dim=TEXT_WIDTH,
        pooled_projection_dim=TEXT_WIDTH,
        rope_axes_dim=(2, 4, 4),
        image_condition_type="latent_concat",
    )
    return HunyuanVideoImageToVideoPipeline(
        text_encoder=LlavaForConditionalGeneration(llava),
        tokenizer=tokenizer,
        transformer=transformer,
        vae=vae,
        scheduler=FlowMatchEulerDiscreteScheduler(shift=7.0),
        text_encoder_2=clip_text(len(clip_tokenizer)),
        tokenizer_2=clip_tokenizer,
        image_processor=clip_images(384),
    )
