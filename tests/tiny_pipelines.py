"""Complete image-to-video pipelines of random weights, built with nothing downloaded.

One builder a pipeline class: the components are those of the published models, thin in channels and layers.
What they make is noise; that it is the same noise on every way through Framefit is what tests look at.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from app.pipelines.dynamicrafter.tokenizer import byte_alphabet, tokenizer_from_merges

_BUILDERS: dict[str, Callable[[], Any]] = {}
_LETTERS = [*"▁abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789.,!?'-"]
_TEXT_WIDTH = 16


def build(name: str) -> Any:
    """The pipeline class `name`, on the CPU in float32; every parameter is random."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(11)
        pipe = _BUILDERS[name]()
        for component in pipe.components.values():
            if isinstance(component, nn.Module):
                component.eval().requires_grad_(False)
        for denoiser in ("transformer", "unet"):
            _stir(pipe.components.get(denoiser))
    pipe.set_progress_bar_config(disable=True)
    return pipe


def save(name: str, folder: Path) -> Path:
    """The pipeline as `from_pretrained` finds it."""
    build(name).save_pretrained(folder)
    return folder


def names() -> list[str]:
    """Pipeline classes that can be built."""
    return sorted(_BUILDERS)


def _stir(module: nn.Module | None) -> None:
    """Constant parameters (zero output layers above all) would hide what comes before them."""
    for parameter in module.parameters() if module is not None else ():
        if parameter.numel() > 1 and parameter.min() == parameter.max():
            parameter.add_(torch.randn_like(parameter), alpha=0.1)


def _t5_tokenizer() -> Any:
    from transformers import T5TokenizerFast

    pieces = ["<pad>", "</s>", "<unk>", *_LETTERS]
    tokenizer = T5TokenizerFast(vocab=[(piece, -float(i)) for i, piece in enumerate(pieces)], extra_ids=0)
    tokenizer.model_max_length = 32
    return tokenizer


def _t5_config(kind: Any, **overrides: Any) -> Any:
    numbers = {"d_model": _TEXT_WIDTH, "d_kv": 8, "d_ff": 32, "num_layers": 1, "num_heads": 2}
    return kind(**numbers, vocab_size=384, dropout_rate=0.0, feed_forward_proj="gated-gelu", **overrides)


def _t5() -> Any:
    from transformers import T5Config, T5EncoderModel

    return T5EncoderModel(_t5_config(T5Config))


def _clip_text(vocabulary: int, **overrides: Any) -> Any:
    from transformers import CLIPTextConfig, CLIPTextModel

    numbers = {"hidden_size": _TEXT_WIDTH, "intermediate_size": 32, "num_hidden_layers": 2}
    tokens = {"bos_token_id": vocabulary - 2, "eos_token_id": vocabulary - 1, "vocab_size": vocabulary}
    return CLIPTextModel(CLIPTextConfig(**numbers, **tokens, num_attention_heads=2, **overrides))


def _clip_vision(with_projection: bool, side: int = 32) -> Any:
    from transformers import CLIPVisionConfig, CLIPVisionModel, CLIPVisionModelWithProjection

    numbers = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = CLIPVisionConfig(**numbers, image_size=side, patch_size=16, projection_dim=_TEXT_WIDTH)
    return (CLIPVisionModelWithProjection if with_projection else CLIPVisionModel)(config)


def _clip_images(side: int = 32) -> Any:
    from transformers import CLIPImageProcessor

    return CLIPImageProcessor(size={"shortest_edge": side}, crop_size={"height": side, "width": side})


def _ltx(pipeline: str) -> Any:
    import diffusers

    vae = diffusers.AutoencoderKLLTXVideo(
        latent_channels=8,
        block_out_channels=(8, 8, 16, 16),
        decoder_block_out_channels=(8, 8, 16, 16),
        layers_per_block=(1, 1, 1, 1, 1),
        decoder_layers_per_block=(1, 1, 1, 1, 1),
    )
    transformer = diffusers.LTXVideoTransformer3DModel(
        in_channels=8,
        out_channels=8,
        num_attention_heads=2,
        attention_head_dim=8,
        cross_attention_dim=16,
        num_layers=1,
        caption_channels=_TEXT_WIDTH,
    )
    return getattr(diffusers, pipeline)(
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(),
        vae=vae,
        text_encoder=_t5(),
        tokenizer=_t5_tokenizer(),
        transformer=transformer,
    )


_BUILDERS["LTXImageToVideoPipeline"] = lambda: _ltx("LTXImageToVideoPipeline")
_BUILDERS["LTXConditionPipeline"] = lambda: _ltx("LTXConditionPipeline")


def _ltx2() -> Any:
    from diffusers import (
        AutoencoderKLLTX2Audio,
        AutoencoderKLLTX2Video,
        FlowMatchEulerDiscreteScheduler,
        LTX2ImageToVideoPipeline,
        LTX2VideoTransformer3DModel,
    )
    from diffusers.pipelines.ltx2 import LTX2TextConnectors
    from diffusers.pipelines.ltx2.vocoder import LTX2Vocoder
    from transformers import Gemma3Config, Gemma3ForConditionalGeneration, GemmaTokenizer

    special = ("<pad>", "<eos>", "<bos>", "<unk>", "<mask>")
    vocabulary = {token: number for number, token in enumerate([*special, *_LETTERS])}
    text = {"hidden_size": _TEXT_WIDTH, "intermediate_size": 32, "num_hidden_layers": 1, "head_dim": 8}
    text |= {"num_attention_heads": 2, "num_key_value_heads": 1, "vocab_size": 128, "sliding_window": 16}
    vision = {"hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 1}
    vision |= {"image_size": 32, "patch_size": 16}
    tokens = {"image_token_index": 120, "boi_token_index": 121, "eoi_token_index": 122}
    gemma = Gemma3Config(text_config=text, vision_config=vision, mm_tokens_per_image=4, **tokens)
    audio_vae = AutoencoderKLLTX2Audio(
        base_channels=4,
        ch_mult=(1,),
        num_res_blocks=1,
        resolution=32,
        latent_channels=2,
        mel_bins=8,
    )
    vocoder = LTX2Vocoder(
        in_channels=16,
        hidden_channels=32,
        upsample_kernel_sizes=[16, 20],
        upsample_factors=[8, 10],
        resnet_kernel_sizes=[3],
        resnet_dilations=[[1, 3, 5]],
        output_sampling_rate=8000,
    )
    connectors = LTX2TextConnectors(
        caption_channels=_TEXT_WIDTH,
        text_proj_in_factor=2,
        video_connector_num_attention_heads=2,
        video_connector_attention_head_dim=8,
        video_connector_num_layers=1,
        video_connector_num_learnable_registers=None,
        audio_connector_num_attention_heads=2,
        audio_connector_attention_head_dim=8,
        audio_connector_num_layers=1,
        audio_connector_num_learnable_registers=None,
        rope_double_precision=False,
        causal_temporal_positioning=False,
        rope_type="split",
    )
    transformer = LTX2VideoTransformer3DModel(
        in_channels=8,
        out_channels=8,
        num_attention_heads=2,
        attention_head_dim=8,
        cross_attention_dim=16,
        audio_in_channels=4,
        audio_out_channels=4,
        audio_num_attention_heads=2,
        audio_attention_head_dim=4,
        audio_cross_attention_dim=8,
        num_layers=2,
        caption_channels=_TEXT_WIDTH,
        rope_double_precision=False,
        rope_type="split",
    )
    vae = AutoencoderKLLTX2Video(
        latent_channels=8,
        block_out_channels=(8, 16, 16, 16),
        layers_per_block=(1, 1, 1, 1, 1),
        decoder_block_out_channels=(8, 16, 32),
        decoder_layers_per_block=(1, 1, 1, 1),
        spatial_compression_ratio=32,
        temporal_compression_ratio=8,
    )
    return LTX2ImageToVideoPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(),
        vae=vae,
        audio_vae=audio_vae,
        text_encoder=Gemma3ForConditionalGeneration(gemma),
        tokenizer=GemmaTokenizer(vocab=vocabulary, model_max_length=32),
        connectors=connectors,
        transformer=transformer,
        vocoder=vocoder,
    )


_BUILDERS["LTX2ImageToVideoPipeline"] = _ltx2


def _svd() -> Any:
    from diffusers import (
        AutoencoderKLTemporalDecoder,
        EulerDiscreteScheduler,
        StableVideoDiffusionPipeline,
        UNetSpatioTemporalConditionModel,
    )

    vae = AutoencoderKLTemporalDecoder(
        block_out_channels=(32, 32, 32, 32), down_block_types=("DownEncoderBlock2D",) * 4, layers_per_block=1
    )
    unet = UNetSpatioTemporalConditionModel(
        block_out_channels=(32, 64),
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlockSpatioTemporal", "DownBlockSpatioTemporal"),
        up_block_types=("UpBlockSpatioTemporal", "CrossAttnUpBlockSpatioTemporal"),
        cross_attention_dim=_TEXT_WIDTH,
        num_attention_heads=(2, 4),
        addition_time_embed_dim=32,
        projection_class_embeddings_input_dim=96,
        num_frames=4,
    )
    return StableVideoDiffusionPipeline(
        vae=vae,
        image_encoder=_clip_vision(True, 224),
        unet=unet,
        scheduler=EulerDiscreteScheduler(prediction_type="v_prediction", timestep_type="continuous"),
        feature_extractor=_clip_images(224),
    )


_BUILDERS["StableVideoDiffusionPipeline"] = _svd


def _i2vgen_xl() -> Any:
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
        cross_attention_dim=_TEXT_WIDTH,
        attention_head_dim=4,
        num_attention_heads=None,
    )
    return I2VGenXLPipeline(
        vae=vae,
        text_encoder=_clip_text(len(tokenizer)),
        tokenizer=tokenizer,
        image_encoder=_clip_vision(True),
        feature_extractor=_clip_images(),
        unet=unet,
        scheduler=DDIMScheduler(beta_schedule="linear", clip_sample=False, set_alpha_to_one=False),
    )


_BUILDERS["I2VGenXLPipeline"] = _i2vgen_xl


def _cogvideox() -> Any:
    from diffusers import (
        AutoencoderKLCogVideoX,
        CogVideoXDDIMScheduler,
        CogVideoXImageToVideoPipeline,
        CogVideoXTransformer3DModel,
    )

    vae = AutoencoderKLCogVideoX(
        down_block_types=("CogVideoXDownBlock3D",) * 4,
        up_block_types=("CogVideoXUpBlock3D",) * 4,
        block_out_channels=(8, 8, 8, 8),
        latent_channels=4,
        layers_per_block=1,
        norm_num_groups=2,
        temporal_compression_ratio=4,
    )
    transformer = CogVideoXTransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=16,
        in_channels=8,
        out_channels=4,
        time_embed_dim=2,
        text_embed_dim=_TEXT_WIDTH,
        num_layers=1,
        sample_width=4,
        sample_height=4,
        sample_frames=9,
        patch_size=2,
        use_rotary_positional_embeddings=True,
    )
    return CogVideoXImageToVideoPipeline(
        tokenizer=_t5_tokenizer(),
        text_encoder=_t5(),
        vae=vae,
        transformer=transformer,
        scheduler=CogVideoXDDIMScheduler(),
    )


_BUILDERS["CogVideoXImageToVideoPipeline"] = _cogvideox


def _wan() -> Any:
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
        text_dim=_TEXT_WIDTH,
        freq_dim=32,
        ffn_dim=32,
        num_layers=1,
        image_dim=16,
    )
    return WanImageToVideoPipeline(
        tokenizer=_t5_tokenizer(),
        text_encoder=UMT5EncoderModel(_t5_config(UMT5Config)),
        vae=vae,
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        image_processor=_clip_images(),
        image_encoder=_clip_vision(False),
        transformer=transformer,
    )


_BUILDERS["WanImageToVideoPipeline"] = _wan


def _hunyuanvideo15() -> Any:
    from diffusers import (
        AutoencoderKLHunyuanVideo15,
        FlowMatchEulerDiscreteScheduler,
        HunyuanVideo15ImageToVideoPipeline,
        HunyuanVideo15Transformer3DModel,
    )
    from diffusers.guiders import ClassifierFreeGuidance
    from transformers import (
        ByT5Tokenizer,
        Qwen2_5_VLTextConfig,
        Qwen2_5_VLTextModel,
        Qwen2Tokenizer,
        SiglipImageProcessor,
        SiglipVisionConfig,
        SiglipVisionModel,
    )

    tokens = {token: number for number, token in enumerate(["<|endoftext|>", *byte_alphabet()])}
    tokenizer = Qwen2Tokenizer(vocab=tokens, model_max_length=1200)
    tokenizer.chat_template = "{% for message in messages %}{{ message['content'] }}{% endfor %}"
    rope = {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 10_000.0}
    text = Qwen2_5_VLTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=_TEXT_WIDTH,
        intermediate_size=32,
        num_hidden_layers=3,
        num_attention_heads=2,
        num_key_value_heads=1,
        rope_parameters=rope,
    )
    numbers = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    vision = SiglipVisionConfig(**numbers, image_size=32, patch_size=16)
    vae = AutoencoderKLHunyuanVideo15(
        latent_channels=4, block_out_channels=(8, 8, 16, 16, 16), layers_per_block=1
    )
    transformer = HunyuanVideo15Transformer3DModel(
        in_channels=9,
        out_channels=4,
        num_attention_heads=2,
        attention_head_dim=8,
        num_layers=1,
        num_refiner_layers=1,
        mlp_ratio=2.0,
        text_embed_dim=_TEXT_WIDTH,
        text_embed_2_dim=_TEXT_WIDTH,
        image_embed_dim=16,
        rope_axes_dim=(2, 2, 4),
        target_size=64,
        task_type="i2v",
    )
    return HunyuanVideo15ImageToVideoPipeline(
        text_encoder=Qwen2_5_VLTextModel(text),
        tokenizer=tokenizer,
        transformer=transformer,
        vae=vae,
        scheduler=FlowMatchEulerDiscreteScheduler(shift=7.0),
        text_encoder_2=_t5(),
        tokenizer_2=ByT5Tokenizer(),
        guider=ClassifierFreeGuidance(guidance_scale=2.0),
        image_encoder=SiglipVisionModel(vision),
        feature_extractor=SiglipImageProcessor(size={"height": 32, "width": 32}),
    )


_BUILDERS["HunyuanVideo15ImageToVideoPipeline"] = _hunyuanvideo15


def _hunyuanvideo() -> Any:
    from diffusers import (
        AutoencoderKLHunyuanVideo,
        FlowMatchEulerDiscreteScheduler,
        HunyuanVideoImageToVideoPipeline,
        HunyuanVideoTransformer3DModel,
    )
    from transformers import LlamaConfig, LlamaTokenizer, LlavaConfig, LlavaForConditionalGeneration

    special = ["<unk>", "<s>", "</s>", "<pad>", "<image>", "<|start_header_id|>", "<|end_header_id|>"]
    special.append("<|eot_id|>")
    vocabulary = {token: number for number, token in enumerate([*special, *_LETTERS, "\n"])}
    tokenizer = LlamaTokenizer(
        vocab=vocabulary, pad_token="<pad>", padding_side="right", model_max_length=900
    )
    tokenizer.add_special_tokens({"additional_special_tokens": special[4:]})
    text = LlamaConfig(
        vocab_size=len(vocabulary),
        hidden_size=_TEXT_WIDTH,
        intermediate_size=32,
        num_hidden_layers=3,
        num_attention_heads=2,
        pad_token_id=3,
    )
    vision = _clip_vision(False, 384).config
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
        text_embed_dim=_TEXT_WIDTH,
        pooled_projection_dim=_TEXT_WIDTH,
        rope_axes_dim=(2, 4, 4),
        image_condition_type="latent_concat",
    )
    return HunyuanVideoImageToVideoPipeline(
        text_encoder=LlavaForConditionalGeneration(llava),
        tokenizer=tokenizer,
        transformer=transformer,
        vae=vae,
        scheduler=FlowMatchEulerDiscreteScheduler(shift=7.0),
        text_encoder_2=_clip_text(len(clip_tokenizer)),
        tokenizer_2=clip_tokenizer,
        image_processor=_clip_images(384),
    )


_BUILDERS["HunyuanVideoImageToVideoPipeline"] = _hunyuanvideo
