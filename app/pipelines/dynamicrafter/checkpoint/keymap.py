"""Maps each tensor of the diffusers components to its key in a checkpoint of the original layout.

Owns the names only: a pure function from a component's state key to the original key and the part of that
tensor. Reads no file and needs no weights, so shapes are enough to check the whole map.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from types import MappingProxyType

SCHEDULE_BUFFERS = frozenset(
    {
        "alphas_cumprod",
        "alphas_cumprod_prev",
        "betas",
        "log_one_minus_alphas_cumprod",
        "posterior_log_variance_clipped",
        "posterior_mean_coef1",
        "posterior_mean_coef2",
        "posterior_variance",
        "scale_arr",
        "sqrt_alphas_cumprod",
        "sqrt_one_minus_alphas_cumprod",
        "sqrt_recip_alphas_cumprod",
        "sqrt_recipm1_alphas_cumprod",
    }
)
"""Tables that the scheduler computes itself. Only models with a dynamic rescale have `scale_arr`."""

_UNET, _VAE = "model.diffusion_model.", "first_stage_model."
_TEXT, _IMAGE, _PROJECTOR = "cond_stage_model.model.", "embedder.model.", "image_proj_model."

# The original stores all of CLIP but does not run its pooling and contrastive parts or the last text block.
_UNUSED = re.compile(
    re.escape(_TEXT) + r"(text_projection|logit_scale|attn_mask)"
    "|" + re.escape(_IMAGE) + r"(text_projection|logit_scale|attn_mask|positional_embedding|visual\.proj"
    r"|token_embedding\.weight|ln_final\.(weight|bias))"
)


@dataclass(frozen=True, slots=True)
class Source:
    """Part `index` of `count` equal parts, along dimension 0, of the original tensor `key`.

    The original's last `kernel_dims` dimensions are those of a 1x1 convolution kernel, which a linear layer
    does not have.
    """

    key: str
    index: int = 0
    count: int = 1
    kernel_dims: int = 0

    def original_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """The shape of the original tensor if the component's tensor has `shape`."""
        if self.count == 1 and not self.kernel_dims:
            return shape
        return (shape[0] * self.count, *shape[1:], *(1,) * self.kernel_dims)


@dataclass(frozen=True, slots=True)
class Layout:
    """The numbers of the architecture that the names depend on."""

    unet_layers_per_block: int
    unet_up_attention: tuple[bool, ...]
    vae_levels: int
    text_layers: int


def is_unused(key: str, layout: Layout) -> bool:
    """Whether `key` is in the original checkpoint but no part of inference reads it."""
    last_block = f"{_TEXT}transformer.resblocks.{layout.text_layers}."
    return key in SCHEDULE_BUFFERS or key.startswith(last_block) or _UNUSED.fullmatch(key) is not None


def canonical(key: str) -> str:
    """The key in the later checkpoints: the 256 file calls the frame-rate embedding `framestride_embed`."""
    return key.replace(f"{_UNET}framestride_embed.", f"{_UNET}fps_embedding.")


def source_of(component: str, key: str, layout: Layout) -> Source:
    """The source of `key` in the state of `component`. Raises KeyError for a key that no rule covers."""
    return _RULES[component](key, layout)


def _rename(key: str, names: dict[str, str]) -> str:
    head, _, tail = key.partition(".")
    return f"{names.get(head, head)}.{tail}"


_RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
_UNET_STEMS = {
    "conv_in": "input_blocks.0.0",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
    "transformer_in": "init_attn.0",
}
_SLOT = {"resnets": 0, "temp_convs": 0, "attentions": 1, "temp_attentions": 2}


def _unet_layer(kind: str, rest: str) -> str:
    """The part of an original name after the block's slot."""
    if kind == "resnets":
        return _rename(rest, _RESNET)
    # `temopral_conv` is the spelling of the release.
    return f"temopral_conv.{rest}" if kind == "temp_convs" else rest.replace(".processor.", ".")


def _unet_source(key: str, layout: Layout) -> Source:
    parts = key.split(".")
    per_level = layout.unet_layers_per_block + 1
    if parts[0] in ("time_embedding", "fps_embedding"):
        name = "time_embed" if parts[0] == "time_embedding" else "fps_embedding"
        layer = {"linear_1": 0, "linear_2": 2}[parts[1]]
        return Source(f"{_UNET}{name}.{layer}.{parts[2]}")
    if parts[0] in _UNET_STEMS:
        projection = parts[0] == "transformer_in" and parts[1:] in (
            ["proj_in", "weight"],
            ["proj_out", "weight"],
        )
        return Source(_UNET + _rename(key, _UNET_STEMS), kernel_dims=int(projection))
    if parts[0] == "mid_block":
        kind, number, rest = parts[1], int(parts[2]), ".".join(parts[3:])
        slot = 3 * number if kind in ("resnets", "temp_convs") else _SLOT[kind]
        return Source(f"{_UNET}middle_block.{slot}.{_unet_layer(kind, rest)}")
    level, kind, number, rest = int(parts[1]), parts[2], int(parts[3]), ".".join(parts[4:])
    if parts[0] == "down_blocks":
        if kind == "downsamplers":
            return Source(f"{_UNET}input_blocks.{(level + 1) * per_level}.0.{_rename(rest, {'conv': 'op'})}")
        return Source(
            f"{_UNET}input_blocks.{1 + level * per_level + number}.{_SLOT[kind]}.{_unet_layer(kind, rest)}"
        )
    if kind == "upsamplers":
        slot = 3 if layout.unet_up_attention[level] else 1
        return Source(f"{_UNET}output_blocks.{(level + 1) * per_level - 1}.{slot}.{rest}")
    return Source(
        f"{_UNET}output_blocks.{level * per_level + number}.{_SLOT[kind]}.{_unet_layer(kind, rest)}"
    )


_VAE_STEMS = {"conv_norm_out": "norm_out"}
_VAE_RESNET = {"conv_shortcut": "nin_shortcut"}
_VAE_SAMPLERS = {"downsamplers": "downsample", "upsamplers": "upsample"}
_VAE_ATTENTION = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}


def _vae_source(key: str, layout: Layout) -> Source:
    half, _, rest = key.partition(".")
    if half not in ("encoder", "decoder"):
        return Source(_VAE + key)
    prefix = f"{_VAE}{half}."
    if match := re.fullmatch(r"mid_block\.attentions\.0\.(to_out\.0|\w+)\.(weight|bias)", rest):
        linear = match[1] != "group_norm" and match[2] == "weight"
        name = f"{prefix}mid.attn_1.{_VAE_ATTENTION[match[1]]}.{match[2]}"
        return Source(name, kernel_dims=2 * int(linear))
    if match := re.fullmatch(r"mid_block\.resnets\.(\d)\.(.+)", rest):
        return Source(f"{prefix}mid.block_{int(match[1]) + 1}.{match[2]}")
    if match := re.fullmatch(r"(down|up)_blocks\.(\d+)\.(\w+)\.(\d+)\.(.+)", rest):
        level = int(match[2]) if match[1] == "down" else layout.vae_levels - 1 - int(match[2])
        if match[3] == "resnets":
            name = f"block.{match[4]}.{_rename(match[5], _VAE_RESNET)}"
        else:
            name = f"{_VAE_SAMPLERS[match[3]]}.{match[5]}"
        return Source(f"{prefix}{match[1]}.{level}.{name}")
    return Source(prefix + _rename(rest, _VAE_STEMS))


_CLIP_LAYER = {
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
    "self_attn.out_proj": "attn.out_proj",
}
_TEXT_STEMS = {
    "embeddings.token_embedding.weight": "token_embedding.weight",
    "embeddings.position_embedding.weight": "positional_embedding",
    "final_layer_norm.weight": "ln_final.weight",
    "final_layer_norm.bias": "ln_final.bias",
}
_VISION_STEMS = {
    "embeddings.class_embedding": "class_embedding",
    "embeddings.patch_embedding.weight": "conv1.weight",
    "embeddings.position_embedding.weight": "positional_embedding",
    "pre_layrnorm.weight": "ln_pre.weight",
    "pre_layrnorm.bias": "ln_pre.bias",
    "post_layernorm.weight": "ln_post.weight",
    "post_layernorm.bias": "ln_post.bias",
}


def _clip_source(prefix: str, stems: dict[str, str], key: str) -> Source:
    if key in stems:
        return Source(prefix + stems[key])
    match = re.fullmatch(r"encoder\.layers\.(\d+)\.(.+)\.(weight|bias)", key)
    if match is None:
        raise KeyError(key)
    block = f"{prefix}transformer.resblocks.{match[1]}."
    if fused := re.fullmatch(r"self_attn\.([qkv])_proj", match[2]):
        return Source(f"{block}attn.in_proj_{match[3]}", index="qkv".index(fused[1]), count=3)
    return Source(f"{block}{_CLIP_LAYER[match[2]]}.{match[3]}")


_PROJECTOR_LAYER = {
    "ln0": "0.norm1",
    "ln1": "0.norm2",
    "attn.to_q": "0.to_q",
    "attn.to_out.0": "0.to_out",
    "ff.0": "1.0",
    "ff.1.net.0.proj": "1.1",
    "ff.1.net.2": "1.3",
}


def _projector_source(key: str, layout: Layout) -> Source:
    del layout
    name = key.removeprefix("resampler.")
    match = re.fullmatch(r"layers\.(\d+)\.(.+)\.(weight|bias)", name)
    if match is None:
        return Source(_PROJECTOR + name)
    block = f"{_PROJECTOR}layers.{match[1]}."
    if match[2] in ("attn.to_k", "attn.to_v"):
        return Source(f"{block}0.to_kv.{match[3]}", index=int(match[2] == "attn.to_v"), count=2)
    return Source(f"{block}{_PROJECTOR_LAYER[match[2]]}.{match[3]}")


_RULES: MappingProxyType[str, Callable[[str, Layout], Source]] = MappingProxyType(
    {
        "unet": _unet_source,
        "vae": _vae_source,
        "text_encoder": lambda key, _layout: _clip_source(_TEXT, _TEXT_STEMS, key),
        "image_encoder": lambda key, _layout: _clip_source(_IMAGE + "visual.", _VISION_STEMS, key),
        "image_projector": _projector_source,
    }
)
