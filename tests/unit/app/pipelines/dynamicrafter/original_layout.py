"""Every key and shape of an original checkpoint, derived from the published architecture.

Walks the networks in the original's own order and numbering (input, middle and output blocks), and knows
nothing of the code under test: the key maps are checked against this.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

Shape = tuple[int, ...]
Entry = tuple[str, Shape]

_BUFFERS = (
    "betas",
    "alphas_cumprod",
    "alphas_cumprod_prev",
    "sqrt_alphas_cumprod",
    "sqrt_one_minus_alphas_cumprod",
    "log_one_minus_alphas_cumprod",
    "sqrt_recip_alphas_cumprod",
    "sqrt_recipm1_alphas_cumprod",
    "posterior_variance",
    "posterior_log_variance_clipped",
    "posterior_mean_coef1",
    "posterior_mean_coef2",
)


@dataclass(frozen=True)
class Widths:
    """Numbers of the published configuration files; the values are those of all three published models."""

    model_channels: int = 320
    channel_mult: Sequence[int] = (1, 2, 4, 4)
    res_blocks: int = 2
    head: int = 64
    context: int = 1024
    vae_channels: int = 128
    vae_mult: Sequence[int] = (1, 2, 4, 4)
    vae_blocks: int = 2
    resampler: int = 1024
    resampler_depth: int = 4
    resampler_inner: int = 768
    text_vocabulary: int = 49408
    text_layers: int = 24
    vision: int = 1280
    vision_layers: int = 32
    vision_patch: int = 14
    vision_tokens: int = 257


def _weight_bias(name: str, *shape: int) -> Iterator[Entry]:
    yield f"{name}.weight", shape
    yield f"{name}.bias", shape[:1]


def _transformer(
    name: str, width: int, inner: int, context: int | None, learnable: bool, kernel: Shape = ()
) -> Iterator[Entry]:
    yield from _weight_bias(f"{name}.norm", width)
    yield f"{name}.proj_in.weight", (inner, width, *kernel)
    yield f"{name}.proj_in.bias", (inner,)
    block = f"{name}.transformer_blocks.0"
    for attention, source in (("attn1", inner), ("attn2", context or inner)):
        yield f"{block}.{attention}.to_q.weight", (inner, inner)
        for projection in ("to_k", "to_v"):
            yield f"{block}.{attention}.{projection}.weight", (inner, source)
        yield from _weight_bias(f"{block}.{attention}.to_out.0", inner, inner)
    if context:
        yield f"{block}.attn2.to_k_ip.weight", (inner, context)
        yield f"{block}.attn2.to_v_ip.weight", (inner, context)
        if learnable:
            yield f"{block}.attn2.alpha", ()
    yield from _weight_bias(f"{block}.ff.net.0.proj", 8 * inner, inner)
    yield from _weight_bias(f"{block}.ff.net.2", inner, 4 * inner)
    for norm in ("norm1", "norm2", "norm3"):
        yield from _weight_bias(f"{block}.{norm}", inner)
    yield f"{name}.proj_out.weight", (width, inner, *kernel)
    yield f"{name}.proj_out.bias", (width,)


def _residual(name: str, before: int, after: int, time: int) -> Iterator[Entry]:
    yield from _weight_bias(f"{name}.in_layers.0", before)
    yield from _weight_bias(f"{name}.in_layers.2", after, before, 3, 3)
    yield from _weight_bias(f"{name}.emb_layers.1", after, time)
    yield from _weight_bias(f"{name}.out_layers.0", after)
    yield from _weight_bias(f"{name}.out_layers.3", after, after, 3, 3)
    if before != after:
        yield from _weight_bias(f"{name}.skip_connection", after, before, 1, 1)
    for number, position in ((1, 2), (2, 3), (3, 3), (4, 3)):
        yield from _weight_bias(f"{name}.temopral_conv.conv{number}.0", after)
        yield from _weight_bias(f"{name}.temopral_conv.conv{number}.{position}", after, after, 3, 1, 1)


def unet(widths: Widths, learnable: bool, rate: str) -> Iterator[Entry]:
    base, time = widths.model_channels, 4 * widths.model_channels

    def attention(name: str, width: int) -> Iterator[Entry]:
        yield from _transformer(f"{name}.1", width, width, widths.context, learnable)
        yield from _transformer(f"{name}.2", width, width, None, learnable)

    for embedding in ("time_embed", rate):
        yield from _weight_bias(f"{embedding}.0", time, base)
        yield from _weight_bias(f"{embedding}.2", time, time)
    yield from _weight_bias("input_blocks.0.0", base, 8, 3, 3)
    yield from _transformer("init_attn.0", base, 8 * widths.head, None, learnable, kernel=(1,))
    number, width, skips = 1, base, [base]
    last = len(widths.channel_mult) - 1
    for level, factor in enumerate(widths.channel_mult):
        for _ in range(widths.res_blocks):
            yield from _residual(f"input_blocks.{number}.0", width, factor * base, time)
            width = factor * base
            if level != last:
                yield from attention(f"input_blocks.{number}", width)
            skips.append(width)
            number += 1
        if level != last:
            yield from _weight_bias(f"input_blocks.{number}.0.op", width, width, 3, 3)
            skips.append(width)
            number += 1
    yield from _residual("middle_block.0", width, width, time)
    yield from attention("middle_block", width)
    yield from _residual("middle_block.3", width, width, time)
    number = 0
    for level in reversed(range(last + 1)):
        for block in range(widths.res_blocks + 1):
            yield from _residual(
                f"output_blocks.{number}.0", width + skips.pop(), widths.channel_mult[level] * base, time
            )
            width = widths.channel_mult[level] * base
            if level != last:
                yield from attention(f"output_blocks.{number}", width)
            if level and block == widths.res_blocks:
                slot = 1 if level == last else 3
                yield from _weight_bias(f"output_blocks.{number}.{slot}.conv", width, width, 3, 3)
            number += 1
    yield from _weight_bias("out.0", width)
    yield from _weight_bias("out.2", 4, base, 3, 3)


def _vae_block(name: str, before: int, after: int) -> Iterator[Entry]:
    yield from _weight_bias(f"{name}.norm1", before)
    yield from _weight_bias(f"{name}.conv1", after, before, 3, 3)
    yield from _weight_bias(f"{name}.norm2", after)
    yield from _weight_bias(f"{name}.conv2", after, after, 3, 3)
    if before != after:
        yield from _weight_bias(f"{name}.nin_shortcut", after, before, 1, 1)


def _vae_middle(name: str, width: int) -> Iterator[Entry]:
    yield from _vae_block(f"{name}.block_1", width, width)
    yield from _weight_bias(f"{name}.attn_1.norm", width)
    for layer in ("q", "k", "v", "proj_out"):
        yield from _weight_bias(f"{name}.attn_1.{layer}", width, width, 1, 1)
    yield from _vae_block(f"{name}.block_2", width, width)


def vae(widths: Widths) -> Iterator[Entry]:
    channels = [widths.vae_channels * factor for factor in widths.vae_mult]
    top = len(channels) - 1
    yield from _weight_bias("encoder.conv_in", channels[0], 3, 3, 3)
    width = channels[0]
    for level, after in enumerate(channels):
        for block in range(widths.vae_blocks):
            yield from _vae_block(f"encoder.down.{level}.block.{block}", width, after)
            width = after
        if level != top:
            yield from _weight_bias(f"encoder.down.{level}.downsample.conv", width, width, 3, 3)
    yield from _vae_middle("encoder.mid", width)
    yield from _weight_bias("encoder.norm_out", width)
    yield from _weight_bias("encoder.conv_out", 8, width, 3, 3)
    yield from _weight_bias("decoder.conv_in", width, 4, 3, 3)
    yield from _vae_middle("decoder.mid", width)
    for level in reversed(range(top + 1)):
        for block in range(widths.vae_blocks + 1):
            yield from _vae_block(f"decoder.up.{level}.block.{block}", width, channels[level])
            width = channels[level]
        if level:
            yield from _weight_bias(f"decoder.up.{level}.upsample.conv", width, width, 3, 3)
    yield from _weight_bias("decoder.norm_out", width)
    yield from _weight_bias("decoder.conv_out", 3, width, 3, 3)
    yield from _weight_bias("quant_conv", 8, 8, 1, 1)
    yield from _weight_bias("post_quant_conv", 4, 4, 1, 1)


def _clip_blocks(name: str, width: int, layers: int) -> Iterator[Entry]:
    for layer in range(layers):
        block = f"{name}transformer.resblocks.{layer}"
        yield f"{block}.attn.in_proj_weight", (3 * width, width)
        yield f"{block}.attn.in_proj_bias", (3 * width,)
        yield from _weight_bias(f"{block}.attn.out_proj", width, width)
        yield from _weight_bias(f"{block}.ln_1", width)
        yield from _weight_bias(f"{block}.ln_2", width)
        yield from _weight_bias(f"{block}.mlp.c_fc", 4 * width, width)
        yield from _weight_bias(f"{block}.mlp.c_proj", width, 4 * width)


def _clip_text_ends(widths: Widths) -> Iterator[Entry]:
    yield "token_embedding.weight", (widths.text_vocabulary, widths.context)
    yield "positional_embedding", (77, widths.context)
    yield from _weight_bias("ln_final", widths.context)
    yield "text_projection", (widths.context, widths.context)
    yield "logit_scale", ()


def vision(widths: Widths) -> Iterator[Entry]:
    yield "class_embedding", (widths.vision,)
    yield "positional_embedding", (widths.vision_tokens, widths.vision)
    yield "conv1.weight", (widths.vision, 3, widths.vision_patch, widths.vision_patch)
    yield from _weight_bias("ln_pre", widths.vision)
    yield from _clip_blocks("", widths.vision, widths.vision_layers)
    yield from _weight_bias("ln_post", widths.vision)
    yield "proj", (widths.vision, widths.context)


def resampler(widths: Widths) -> Iterator[Entry]:
    width, inner = widths.resampler, widths.resampler_inner
    yield "latents", (1, 256, width)
    yield from _weight_bias("proj_in", width, widths.vision)
    yield from _weight_bias("proj_out", widths.context, width)
    yield from _weight_bias("norm_out", widths.context)
    for layer in range(widths.resampler_depth):
        yield from _weight_bias(f"layers.{layer}.0.norm1", width)
        yield from _weight_bias(f"layers.{layer}.0.norm2", width)
        yield f"layers.{layer}.0.to_q.weight", (inner, width)
        yield f"layers.{layer}.0.to_kv.weight", (2 * inner, width)
        yield f"layers.{layer}.0.to_out.weight", (width, inner)
        yield from _weight_bias(f"layers.{layer}.1.0", width)
        yield f"layers.{layer}.1.1.weight", (4 * width, width)
        yield f"layers.{layer}.1.3.weight", (width, 4 * width)


def checkpoint(resolution: int, widths: Widths | None = None) -> dict[str, Shape]:
    """Every key of the published file of `resolution` with its shape."""
    widths = widths or Widths()
    first = resolution == 256
    parts = {
        "model.diffusion_model.": unet(widths, first, "framestride_embed" if first else "fps_embedding"),
        "first_stage_model.": vae(widths),
        "cond_stage_model.model.": _join(
            _clip_text_ends(widths), _clip_blocks("", widths.context, widths.text_layers)
        ),
        "embedder.model.": _clip_text_ends(widths),
        "embedder.model.visual.": vision(widths),
        "image_proj_model.": resampler(widths),
    }
    entries = {prefix + key: shape for prefix, part in parts.items() for key, shape in part}
    buffers = dict.fromkeys(_BUFFERS, (1000,)) | ({} if first else {"scale_arr": (1400,)})
    return entries | buffers


def _join(*parts: Iterator[Entry]) -> Iterator[Entry]:
    for part in parts:
        yield from part


# Those of `app.pipelines.dynamicrafter.tiny`.
TINY_WIDTHS = Widths(
    model_channels=8,
    channel_mult=(1, 1, 1, 1),
    res_blocks=1,
    head=4,
    context=16,
    vae_channels=8,
    vae_mult=(1, 1, 1, 1),
    vae_blocks=1,
    resampler=16,
    resampler_depth=1,
    resampler_inner=16,
    text_vocabulary=514,
    text_layers=3,
    vision=16,
    vision_layers=2,
    vision_patch=16,
    vision_tokens=5,
)


def random_checkpoint(resolution: int) -> dict[str, torch.Tensor]:
    """A file of random tensors as `from_single_file` with the tiny configurations takes it."""
    generator = torch.Generator().manual_seed(resolution)
    tensors = {
        key: torch.randn(shape, generator=generator) * 0.1
        for key, shape in checkpoint(resolution, TINY_WIDTHS).items()
    }
    if "scale_arr" in tensors:
        tensors["scale_arr"] = torch.full((1400,), {512: 0.7, 1024: 0.3}[resolution])
    return tensors
