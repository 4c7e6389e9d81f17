"""Pipelines that need real frames inside their call: thin ones of random weights.

FramePack, ChronoEdit, Helios, LTX with several prompts, Cosmos. Cosmos' safety checker has weights of its
own, which are not here: `tests/stand_ins/cosmos_guardrail.py` has the interface.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from app.pipelines.dynamicrafter.tokenizer import byte_alphabet, tokenizer_from_merges
from tiny_pipelines import ltx
from tiny_pipelines.shared import (
    LETTERS,
    TEXT_WIDTH,
    clip_images,
    clip_text,
    clip_vision,
    t5,
    t5_config,
    t5_tokenizer,
)


def _umt5() -> Any:
    from transformers import UMT5Config, UMT5EncoderModel

    return UMT5EncoderModel(t5_config(UMT5Config))


def _wan_vae() -> Any:
    from diffusers import AutoencoderKLWan

    return AutoencoderKLWan(
        base_dim=4,
        z_dim=16,
        dim_mult=[1, 1, 1, 1],
        num_res_blocks=1,
        temperal_downsample=[False, True, True],
    )


_WAN_LIKE = {
    "patch_size": (1, 2, 2),
    "num_attention_heads": 2,
    "attention_head_dim": 12,
    "text_dim": TEXT_WIDTH,
    "freq_dim": 32,
    "ffn_dim": 32,
    "num_layers": 1,
}


def framepack() -> Any:
    from diffusers import (
        AutoencoderKLHunyuanVideo,
        FlowMatchEulerDiscreteScheduler,
        HunyuanVideoFramepackPipeline,
        HunyuanVideoFramepackTransformer3DModel,
    )
    from transformers import (
        LlamaConfig,
        LlamaModel,
        LlamaTokenizer,
        SiglipImageProcessor,
        SiglipVisionConfig,
        SiglipVisionModel,
    )

    special = ["<unk>", "<s>", "</s>", "<pad>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]
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
    numbers = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    clip_tokenizer = tokenizer_from_merges([])
    vae = AutoencoderKLHunyuanVideo(
        latent_channels=4, block_out_channels=(8, 8, 8, 8), layers_per_block=1, norm_num_groups=4
    )
    transformer = HunyuanVideoFramepackTransformer3DModel(
        in_channels=4,
        out_channels=4,
        num_attention_heads=2,
        attention_head_dim=10,
        num_layers=1,
        num_single_layers=1,
        num_refiner_layers=1,
        guidance_embeds=True,
        text_embed_dim=TEXT_WIDTH,
        pooled_projection_dim=TEXT_WIDTH,
        rope_axes_dim=(2, 4, 4),
        has_image_proj=True,
        image_proj_dim=16,
        has_clean_x_embedder=True,
    )
    return HunyuanVideoFramepackPipeline(
        text_encoder=LlamaModel(text),
        tokenizer=tokenizer,
        transformer=transformer,
        vae=vae,
        scheduler=FlowMatchEulerDiscreteScheduler(shift=7.0),
        text_encoder_2=clip_text(len(clip_tokenizer)),
        tokenizer_2=clip_tokenizer,
        image_encoder=SiglipVisionModel(SiglipVisionConfig(**numbers, image_size=32, patch_size=16)),
        feature_extractor=SiglipImageProcessor(size={"height": 32, "width": 32}),
    )


def chronoedit() -> Any:
    from diffusers import ChronoEditPipeline, ChronoEditTransformer3DModel, UniPCMultistepScheduler

    flow = {"prediction_type": "flow_prediction", "use_flow_sigmas": True, "flow_shift": 5.0}

    return ChronoEditPipeline(
        tokenizer=t5_tokenizer(),
        text_encoder=_umt5(),
        image_encoder=clip_vision(False),
        image_processor=clip_images(),
        transformer=ChronoEditTransformer3DModel(in_channels=36, out_channels=16, image_dim=16, **_WAN_LIKE),
        vae=_wan_vae(),
        scheduler=UniPCMultistepScheduler(**flow),
    )


def helios(pipeline: str) -> Any:
    import diffusers

    is_pyramid = pipeline == "HeliosPyramidPipeline"
    return getattr(diffusers, pipeline)(
        tokenizer=t5_tokenizer(),
        text_encoder=_umt5(),
        vae=_wan_vae(),
        scheduler=diffusers.HeliosScheduler(
            stages=3 if is_pyramid else 1, stage_range=[0, 1 / 3, 2 / 3, 1] if is_pyramid else [0, 1]
        ),
        transformer=diffusers.HeliosTransformer3DModel(rope_dim=(4, 4, 4), **_WAN_LIKE),
    )


def cosmos() -> Any:
    from diffusers import (
        AutoencoderKLCosmos,
        CosmosTransformer3DModel,
        CosmosVideoToWorldPipeline,
        EDMEulerScheduler,
    )

    vae = AutoencoderKLCosmos(
        latent_channels=4,
        encoder_block_out_channels=(8, 8, 16, 16),
        decode_block_out_channels=(8, 8, 16, 16),
        attention_resolutions=(8,),
        resolution=64,
        num_layers=1,
        patch_size=4,
        spatial_compression_ratio=4,
        temporal_compression_ratio=4,
    )
    return CosmosVideoToWorldPipeline(
        text_encoder=t5(),
        tokenizer=t5_tokenizer(),
        transformer=CosmosTransformer3DModel(in_channels=4 + 1, out_channels=4, **_cosmos_sizes("learnable")),
        vae=vae,
        scheduler=EDMEulerScheduler(final_sigmas_type="sigma_min"),
    )


def cosmos2() -> Any:
    from diffusers import (
        Cosmos2VideoToWorldPipeline,
        CosmosTransformer3DModel,
        FlowMatchEulerDiscreteScheduler,
    )

    return Cosmos2VideoToWorldPipeline(
        text_encoder=t5(),
        tokenizer=t5_tokenizer(),
        transformer=CosmosTransformer3DModel(in_channels=16 + 1, out_channels=16, **_cosmos_sizes(None)),
        vae=_wan_vae(),
        scheduler=FlowMatchEulerDiscreteScheduler(use_karras_sigmas=True),
    )


def cosmos2_5() -> Any:
    from diffusers import (
        Cosmos2_5_PredictBasePipeline,
        CosmosTransformer3DModel,
        UniPCMultistepScheduler,
    )
    from transformers import (
        Qwen2_5_VLConfig,
        Qwen2_5_VLForConditionalGeneration,
        Qwen2Tokenizer,
    )

    tokens = {token: number for number, token in enumerate(["<|endoftext|>", *byte_alphabet()])}
    tokenizer = Qwen2Tokenizer(vocab=tokens, model_max_length=512)
    tokenizer.chat_template = "{% for message in messages %}{{ message['content'][0]['text'] }}{% endfor %}"
    rope = {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 10_000.0}
    text = {"hidden_size": TEXT_WIDTH, "intermediate_size": 32, "num_hidden_layers": 2}
    text |= {"num_attention_heads": 2, "num_key_value_heads": 2, "vocab_size": len(tokenizer)}
    vision = {"depth": 1, "hidden_size": 16, "intermediate_size": 16, "num_heads": 2}
    vision |= {"out_hidden_size": TEXT_WIDTH}
    config = Qwen2_5_VLConfig(text_config={**text, "rope_parameters": rope}, vision_config=vision)
    transformer = CosmosTransformer3DModel(
        in_channels=16 + 1,
        out_channels=16,
        use_crossattn_projection=True,
        crossattn_proj_in_channels=2 * TEXT_WIDTH,
        encoder_hidden_states_channels=TEXT_WIDTH,
        **_cosmos_sizes(None),
    )
    return Cosmos2_5_PredictBasePipeline(
        text_encoder=Qwen2_5_VLForConditionalGeneration(config),
        tokenizer=tokenizer,
        transformer=transformer,
        vae=_wan_vae(),
        scheduler=UniPCMultistepScheduler(),
    )


def _cosmos_sizes(position: str | None) -> dict[str, Any]:
    return {
        "num_attention_heads": 2,
        "attention_head_dim": 12,
        "num_layers": 1,
        "mlp_ratio": 2,
        "text_embed_dim": TEXT_WIDTH,
        "adaln_lora_dim": 4,
        "max_size": (16, 32, 32),
        "patch_size": (1, 2, 2),
        "rope_scale": (2.0, 1.0, 1.0),
        "concat_padding_mask": False,  # the published models', too, which diffusers resizes by torchvision
        "extra_pos_embed_type": position,
    }


BUILDERS: dict[str, Callable[[], Any]] = {
    "ChronoEditPipeline": chronoedit,
    "Cosmos2VideoToWorldPipeline": cosmos2,
    "Cosmos2_5_PredictBasePipeline": cosmos2_5,
    "CosmosVideoToWorldPipeline": cosmos,
    "HeliosPipeline": partial(helios, "HeliosPipeline"),
    "HeliosPyramidPipeline": partial(helios, "HeliosPyramidPipeline"),
    "HunyuanVideoFramepackPipeline": framepack,
    "LTXI2VLongMultiPromptPipeline": partial(ltx.build, "LTXI2VLongMultiPromptPipeline"),
}
