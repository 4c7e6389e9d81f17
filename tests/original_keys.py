"""The keys of published models in the layouts of their authors and of llama.cpp, made from diffusers' own.

These are diffusers' single-file converters inverted. Each list is sent through the converter, which must give
the class's keys and shapes back.
"""

import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from diffusers.loaders import single_file_utils as converters

Keys = dict[str, tuple[int, ...]]


_WAN_RENAMES = (
    ("condition_embedder.time_embedder.linear_1", "time_embedding.0"),
    ("condition_embedder.time_embedder.linear_2", "time_embedding.2"),
    ("condition_embedder.text_embedder.linear_1", "text_embedding.0"),
    ("condition_embedder.text_embedder.linear_2", "text_embedding.2"),
    ("condition_embedder.time_proj", "time_projection.1"),
    ("condition_embedder.image_embedder.norm1", "img_emb.proj.0"),
    ("condition_embedder.image_embedder.ff.net.0.proj", "img_emb.proj.1"),
    ("condition_embedder.image_embedder.ff.net.2", "img_emb.proj.3"),
    ("condition_embedder.image_embedder.norm2", "img_emb.proj.4"),
    ("condition_embedder.image_embedder.pos_embed", "img_emb.emb_pos"),
    ("attn1", "self_attn"),
    ("attn2", "cross_attn"),
    (".to_out.0.", ".o."),
    (".to_q.", ".q."),
    (".to_k.", ".k."),
    (".to_v.", ".v."),
    (".add_k_proj.", ".k_img."),
    (".add_v_proj.", ".v_img."),
    (".norm_added_k.", ".norm_k_img."),
    ("ffn.net.0.proj", "ffn.0"),
    ("ffn.net.2", "ffn.2"),
    ("scale_shift_table", "modulation"),
    ("norm3", "norm__placeholder"),
    ("norm2", "norm3"),
    ("norm__placeholder", "norm2"),
)


def _wan(keys: Keys) -> Keys:
    return {_wan_name(key): shape for key, shape in keys.items()}


def _wan_name(key: str) -> str:
    if key == "scale_shift_table":
        return "head.modulation"
    if key.startswith("proj_out"):
        return key.replace("proj_out", "head.head")
    if key.startswith("condition_embedder.image_embedder.norm"):
        return _renamed(key, _WAN_RENAMES[5:10])
    return _renamed(key, _WAN_RENAMES)


def _renamed(key: str, renames: Iterable[tuple[str, str]]) -> str:
    for old, new in renames:
        key = key.replace(old, new)
    return key


def _ltx(keys: Keys) -> Keys:
    renames = (
        ("proj_in", "patchify_proj"),
        ("time_embed", "adaln_single"),
        ("norm_q", "q_norm"),
        ("norm_k", "k_norm"),
    )
    return {_renamed(key, renames): shape for key, shape in keys.items()}


def _ltx2(keys: Keys) -> Keys:
    renames = (
        ("audio_proj_in", "audio_patchify_proj"),
        ("av_cross_attn_video_scale_shift", "av_ca_video_scale_shift_adaln_single"),
        ("av_cross_attn_video_a2v_gate", "av_ca_a2v_gate_adaln_single"),
        ("av_cross_attn_audio_scale_shift", "av_ca_audio_scale_shift_adaln_single"),
        ("av_cross_attn_audio_v2a_gate", "av_ca_v2a_gate_adaln_single"),
        ("video_a2v_cross_attn_scale_shift_table", "scale_shift_table_a2v_ca_video"),
        ("audio_a2v_cross_attn_scale_shift_table", "scale_shift_table_a2v_ca_audio"),
        ("norm_q", "q_norm"),
        ("norm_k", "k_norm"),
    )
    made = {}
    for key, shape in keys.items():
        name = re.sub(r"^(audio_)?time_embed\.", r"\1adaln_single.", _renamed(key, renames))
        made[re.sub(r"^proj_in\.", "patchify_proj.", name)] = shape
    return made


def _blocks(
    keys: Keys, encoder: Mapping[str, str], decoder: Mapping[str, str], rest: Iterable[tuple[str, str]]
) -> Keys:
    """Renames the blocks of LTX's VAEs, whose converters map names of the original to those of diffusers."""
    made = {}
    for key, shape in keys.items():
        half = encoder if key.startswith("encoder.") else decoder
        for theirs, ours in sorted(half.items(), key=lambda each: -len(each[1])):
            start = f"{key.partition('.')[0]}.{ours}."
            if key.startswith(start):
                key = f"{key.partition('.')[0]}.{theirs}.{key.removeprefix(start)}"
                break
        made[_renamed(key, rest)] = shape
    return made


_STATISTICS = (
    ("latents_mean", "per_channel_statistics.mean-of-means"),
    ("latents_std", "per_channel_statistics.std-of-means"),
)
_ENCODER_095 = {
    "down_blocks.0": "down_blocks.0",
    "down_blocks.1": "down_blocks.0.downsamplers.0",
    "down_blocks.2": "down_blocks.1",
    "down_blocks.3": "down_blocks.1.downsamplers.0",
    "down_blocks.4": "down_blocks.2",
    "down_blocks.5": "down_blocks.2.downsamplers.0",
    "down_blocks.6": "down_blocks.3",
    "down_blocks.7": "down_blocks.3.downsamplers.0",
    "down_blocks.8": "mid_block",
}
_ENCODER_09 = {
    "down_blocks.0": "down_blocks.0",
    "down_blocks.1": "down_blocks.0.downsamplers.0",
    "down_blocks.2": "down_blocks.0.conv_out",
    "down_blocks.3": "down_blocks.1",
    "down_blocks.4": "down_blocks.1.downsamplers.0",
    "down_blocks.5": "down_blocks.1.conv_out",
    "down_blocks.6": "down_blocks.2",
    "down_blocks.7": "down_blocks.2.downsamplers.0",
    "down_blocks.8": "down_blocks.3",
    "down_blocks.9": "mid_block",
}
_DECODER_09 = {
    "up_blocks.0": "mid_block",
    "up_blocks.1": "up_blocks.0",
    "up_blocks.2": "up_blocks.1.upsamplers.0",
    "up_blocks.3": "up_blocks.1",
    "up_blocks.4": "up_blocks.2.conv_in",
    "up_blocks.5": "up_blocks.2.upsamplers.0",
    "up_blocks.6": "up_blocks.2",
    "up_blocks.7": "up_blocks.3.conv_in",
    "up_blocks.8": "up_blocks.3.upsamplers.0",
    "up_blocks.9": "up_blocks.3",
}
_DECODER_091 = {
    "up_blocks.0": "mid_block",
    "up_blocks.1": "up_blocks.0.upsamplers.0",
    "up_blocks.2": "up_blocks.0",
    "up_blocks.3": "up_blocks.1.upsamplers.0",
    "up_blocks.4": "up_blocks.1",
    "up_blocks.5": "up_blocks.2.upsamplers.0",
    "up_blocks.6": "up_blocks.2",
    "up_blocks.7": "up_blocks.3.upsamplers.0",
    "up_blocks.8": "up_blocks.3",
}
_LTX_VAE_REST = (("conv_shortcut.conv", "conv_shortcut"), ("resnets", "res_blocks"), *_STATISTICS)
_LTX_VAE_LATER = (
    *_LTX_VAE_REST,
    ("decoder.time_embedder", "decoder.last_time_embedder"),
    ("decoder.scale_shift_table", "decoder.last_scale_shift_table"),
)


def _ltx_vae(
    encoder: Mapping[str, str], decoder: Mapping[str, str], rest: Iterable[tuple[str, str]]
) -> Callable[[Keys], Keys]:
    return lambda keys: {
        re.sub(r"(norm3)\.(?!norm)", r"\1.norm.", key): shape
        for key, shape in _blocks(keys, encoder, decoder, rest).items()
    }


def _wan_vae(keys: Keys) -> Keys:
    return {_wan_vae_name(key, nested=False): shape for key, shape in keys.items()}


_LAYERS = {"norm1": "residual.0", "conv1": "residual.2", "norm2": "residual.3", "conv2": "residual.6"}


def _wan_vae_name(key: str, *, nested: bool) -> str:
    if key.startswith(("quant_conv", "post_quant_conv")):
        return _renamed(key, (("post_quant_conv", "conv2"), ("quant_conv", "conv1")))
    half, rest = key.split(".", 1)
    rest = _renamed(rest, (("conv_in", "conv1"), ("norm_out", "head.0"), ("conv_out", "head.2")))
    rest = _renamed(
        rest,
        (
            ("mid_block.resnets.0", "middle.0"),
            ("mid_block.attentions.0", "middle.1"),
            ("mid_block.resnets.1", "middle.2"),
        ),
    )
    within = re.match(r"(down|up)_blocks\.(\d+)\.(?:resnets\.(\d+)|(down|up)sampler)\.(.*)", rest)
    if nested and within:
        kind, last = within[1], "2" if within[1] == "down" else "3"
        rest = f"{kind}samples.{within[2]}.{kind}samples.{within[3] or last}.{within[5]}"
    elif match := re.match(r"down_blocks\.(\d+)\.(.*)", rest):
        rest = f"downsamples.{match[1]}.{match[2]}"
    elif match := re.match(r"up_blocks\.(\d+)\.(?:resnets|(upsamplers))\.(\d+)\.(.*)", rest):
        block = int(match[1]) * 4 + (3 if match[2] else int(match[3]))
        rest = f"upsamples.{block}.{match[4]}"
    first, _, after = rest.partition(".conv_shortcut")
    if after:
        return f"{half}.{first}.shortcut{after}"
    for ours, theirs in _LAYERS.items():
        rest = re.sub(rf"^((?:(?:middle|downsamples|upsamples)\.\d+\.)+){ours}\.", rf"\1{theirs}.", rest)
    return f"{half}.{rest}"


def wan22_vae_keys(keys: Keys) -> Keys:
    """Wan 2.2's names of its VAE, which diffusers' single-file converter does not know."""
    return {_wan_vae_name(key, nested=True): shape for key, shape in keys.items()}


_STREAMS_15 = (
    ("attn.to_q.", "img_attn_q."),
    ("attn.to_k.", "img_attn_k."),
    ("attn.to_v.", "img_attn_v."),
    ("attn.add_q_proj", "txt_attn_q"),
    ("attn.add_k_proj", "txt_attn_k"),
    ("attn.add_v_proj", "txt_attn_v"),
)
_INPUTS_15 = (
    ("time_embed.timestep_embedder.linear_1", "time_in.mlp.0"),
    ("time_embed.timestep_embedder.linear_2", "time_in.mlp.2"),
    ("cond_type_embed.", "cond_type_embedding."),
    ("context_embedder_2.norm", "byt5_in.layernorm"),
    ("context_embedder_2.linear_", "byt5_in.fc"),
    ("image_embedder.norm_in", "vision_in.proj.0"),
    ("image_embedder.linear_1", "vision_in.proj.1"),
    ("image_embedder.linear_2", "vision_in.proj.3"),
    ("image_embedder.norm_out", "vision_in.proj.4"),
)


def hunyuanvideo15_keys(keys: Keys) -> Keys:
    """Tencent's names of HunyuanVideo 1.5, which diffusers' single-file converter does not know."""
    inputs = {_renamed(key, _INPUTS_15): shape for key, shape in keys.items()}
    return _hunyuanvideo(
        {
            _renamed(key, _STREAMS_15) if key.startswith("transformer_blocks") else key: shape
            for key, shape in inputs.items()
        }
    )


_COMFYUI = (
    ("_attn_q_norm.weight", "_attn.norm.query_norm.scale"),
    ("_attn_k_norm.weight", "_attn.norm.key_norm.scale"),
    (".q_norm.weight", ".norm.query_norm.scale"),
    (".k_norm.weight", ".norm.key_norm.scale"),
    ("_attn_qkv", "_attn.qkv"),
    ("_attn_proj", "_attn.proj"),
    ("_mod.linear", "_mod.lin"),
    ("modulation.linear", "modulation.lin"),
    ("mlp.fc1", "mlp.0"),
    ("mlp.fc2", "mlp.2"),
    ("t_embedder.mlp.0", "t_embedder.in_layer"),
    ("t_embedder.mlp.2", "t_embedder.out_layer"),
    ("c_embedder.linear_1", "c_embedder.in_layer"),
    ("c_embedder.linear_2", "c_embedder.out_layer"),
    ("time_in.mlp.0", "time_in.in_layer"),
    ("time_in.mlp.2", "time_in.out_layer"),
    ("guidance_in.mlp.0", "guidance_in.in_layer"),
    ("guidance_in.mlp.2", "guidance_in.out_layer"),
)


def hunyuanvideo_comfyui_keys(original: Keys) -> Keys:
    """ComfyUI's own names of HunyuanVideo, which diffusers' single-file converter does not know."""
    return {_renamed(key, _COMFYUI): shape for key, shape in original.items()}


def _hunyuanvideo(keys: Keys) -> Keys:
    made: Keys = {}
    for key, shape in keys.items():
        name = _hunyuanvideo_name(key)
        if name in made:  # queries, keys and values are one matrix
            made[name] = (made[name][0] + shape[0], *shape[1:])
        else:
            made[name] = shape
    return made


_REFINER = (
    ("context_embedder", "txt_in"),
    ("token_refiner.refiner_blocks", "individual_token_refiner.blocks"),
    ("norm_out.linear", "adaLN_modulation.1"),
    ("time_text_embed.timestep_embedder.linear_1", "t_embedder.mlp.0"),
    ("time_text_embed.timestep_embedder.linear_2", "t_embedder.mlp.2"),
    ("time_text_embed.text_embedder", "c_embedder"),
    ("attn.to_out.0", "self_attn_proj"),
    ("ff.net.0.proj", "mlp.fc1"),
    ("ff.net.2", "mlp.fc2"),
    ("proj_in", "input_embedder"),
)
_DOUBLE = (
    ("time_text_embed.timestep_embedder.linear_1", "time_in.mlp.0"),
    ("time_text_embed.timestep_embedder.linear_2", "time_in.mlp.2"),
    ("time_text_embed.guidance_embedder.linear_1", "guidance_in.mlp.0"),
    ("time_text_embed.guidance_embedder.linear_2", "guidance_in.mlp.2"),
    ("time_text_embed.text_embedder.linear_1", "vector_in.in_layer"),
    ("time_text_embed.text_embedder.linear_2", "vector_in.out_layer"),
    ("x_embedder", "img_in"),
    ("transformer_blocks", "double_blocks"),
    ("attn.norm_q", "img_attn_q_norm"),
    ("attn.norm_k", "img_attn_k_norm"),
    ("attn.norm_added_q", "txt_attn_q_norm"),
    ("attn.norm_added_k", "txt_attn_k_norm"),
    ("attn.to_out.0", "img_attn_proj"),
    ("attn.to_add_out", "txt_attn_proj"),
    ("norm1_context.linear", "txt_mod.linear"),
    ("norm1.linear", "img_mod.linear"),
    ("ff_context", "txt_mlp"),
    ("ff.", "img_mlp."),
    ("net.0.proj", "fc1"),
    ("net.2", "fc2"),
    ("norm_out.linear", "final_layer.adaLN_modulation.1"),
)


def _hunyuanvideo_name(key: str) -> str:
    if key.startswith("context_embedder"):
        return _renamed(re.sub(r"attn\.to_[qkv]\.", "self_attn_qkv.", key), _REFINER)
    if key.startswith("single_transformer_blocks"):
        key = re.sub(r"(attn\.to_[qkv]|proj_mlp)\.", "linear1.", key)
        renames = (("proj_out", "linear2"), ("attn.norm_q", "q_norm"), ("attn.norm_k", "k_norm"))
        return _renamed(
            key,
            (("single_transformer_blocks", "single_blocks"), ("norm.linear", "modulation.linear"), *renames),
        )
    if key.startswith("proj_out"):
        return key.replace("proj_out", "final_layer.linear")
    key = re.sub(r"attn\.to_[qkv]\.", "img_attn_qkv.", key)
    key = re.sub(r"attn\.add_[qkv]_proj\.", "txt_attn_qkv.", key)
    return _renamed(key, _DOUBLE)


# diffusers' converter leaves the name of the author as it is.
_NOT_CONVERTED = {"img_emb.emb_pos": "condition_embedder.image_embedder.pos_embed"}


def umt5_keys(keys: Keys) -> Keys:
    """Wan's own names, read in its source; diffusers has no converter of text encoders to check them by."""
    renames = (
        ("encoder.block.", "blocks."),
        ("encoder.final_layer_norm", "norm"),
        ("shared.", "token_embedding."),
        ("layer.0.SelfAttention.relative_attention_bias", "pos_embedding.embedding"),
        ("layer.0.SelfAttention", "attn"),
        ("layer.0.layer_norm", "norm1"),
        ("layer.1.layer_norm", "norm2"),
        ("layer.1.DenseReluDense.wi_0", "ffn.gate.0"),
        ("layer.1.DenseReluDense.wi_1", "ffn.fc1"),
        ("layer.1.DenseReluDense.wo", "ffn.fc2"),
    )
    return {_renamed(key, renames): shape for key, shape in keys.items()}


Inverse = tuple[Callable[[Keys], Keys], Callable[..., dict[str, Any]]]
_TO_WAN: Inverse = (_wan, converters.convert_wan_transformer_to_diffusers)
_TO_LTX: Inverse = (_ltx, converters.convert_ltx_transformer_checkpoint_to_diffusers)
_TO_HUNYUANVIDEO: Inverse = (_hunyuanvideo, converters.convert_hunyuan_video_transformer_to_diffusers)


def _vae_converter(checkpoint: dict[str, Any]) -> dict[str, Any]:
    within = {f"vae.{key}": value for key, value in checkpoint.items()}
    return converters.convert_ltx_vae_checkpoint_to_diffusers(within)


ORIGINALS: Mapping[str, Inverse] = {
    "ltx-2b": _TO_LTX,
    "ltx-13b": _TO_LTX,
    "ltx-2": (_ltx2, converters.convert_ltx2_transformer_to_diffusers),
    **dict.fromkeys(
        ("wan-1.3b", "wan-14b", "wan-14b-i2v", "wan-14b-i2v-clip", "wan-14b-flf", "wan-5b"), _TO_WAN
    ),
    "hunyuanvideo": _TO_HUNYUANVIDEO,
    "hunyuanvideo-33ch": _TO_HUNYUANVIDEO,
    "ltx-vae-0.9": (_ltx_vae(_ENCODER_09, _DECODER_09, _LTX_VAE_REST), _vae_converter),
    "ltx-vae-0.9.1": (_ltx_vae(_ENCODER_09, _DECODER_091, _LTX_VAE_LATER), _vae_converter),
    "ltx-vae-0.9.5": (_ltx_vae(_ENCODER_095, _DECODER_091, _LTX_VAE_LATER), _vae_converter),
    "ltx2-vae": (
        lambda keys: _blocks(keys, _ENCODER_095, _DECODER_09_2, (("resnets", "res_blocks"), *_STATISTICS)),
        converters.convert_ltx2_vae_to_diffusers,
    ),
    "wan21-vae": (_wan_vae, converters.convert_wan_vae_to_diffusers),
}
_DECODER_09_2 = {
    "up_blocks.0": "mid_block",
    "up_blocks.1": "up_blocks.0.upsamplers.0",
    "up_blocks.2": "up_blocks.0",
    "up_blocks.3": "up_blocks.1.upsamplers.0",
    "up_blocks.4": "up_blocks.1",
    "up_blocks.5": "up_blocks.2.upsamplers.0",
    "up_blocks.6": "up_blocks.2",
}


def original_keys(name: str, keys: Keys) -> Keys:
    """The keys in the layout of the model's authors. Raises `AssertionError` if diffusers disagrees."""
    invert, convert = ORIGINALS[name]
    made = invert(keys)
    tensors = {key: torch.empty(shape, device="meta") for key, shape in made.items()}
    back = {key: tuple(value.shape) for key, value in convert(tensors).items()}
    for theirs, ours in _NOT_CONVERTED.items():
        if theirs in back:
            back[ours] = back.pop(theirs)
    assert back == keys, (
        name,
        sorted(back.keys() - keys.keys())[:9],
        sorted(keys.keys() - back.keys())[:9],
        [(k, back[k], keys[k]) for k in back.keys() & keys.keys() if back[k] != keys[k]][:5],
    )
    return made


def llama_cpp_keys(name: str, keys: Keys) -> Keys:
    """The keys as llama.cpp's converter names them in GGUF files."""
    from gguf import MODEL_ARCH, get_tensor_name_map

    arch, start = {
        "t5-xxl": (MODEL_ARCH.T5ENCODER, ""),
        "umt5-xxl": (MODEL_ARCH.T5ENCODER, ""),
        "llama-8b": (MODEL_ARCH.LLAMA, "model."),
        "gemma-12b": (MODEL_ARCH.GEMMA3, "model."),
        "qwen-7b": (MODEL_ARCH.QWEN2VL, "model."),
    }[name]
    names = get_tensor_name_map(arch, 99)
    made = {}
    for key, shape in keys.items():
        found = names.get_name(start + key, try_suffixes=(".weight", ".bias"))
        assert found is not None, key
        made[found] = shape
    return made
