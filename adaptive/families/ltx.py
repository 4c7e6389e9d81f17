"""LTX-Video (0.9, 0.9.1, 0.9.5, 0.9.7): convolutions with replicate padding, causal or not, and norms within
a position. Serves `AutoencoderKLLTXVideo`.

The temporal layers are the convolution, the residual block (if it is not causal, its two branches have
different delays) and the layers that exchange channels for frames and pixels.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from adaptive.errors import UnsupportedVae
from adaptive.families.shared.causal_family import ALWAYS_FRAMEWISE
from adaptive.families.shared.family import Family
from adaptive.families.shared.rules import activation, channels_to_space, space_to_channels
from adaptive.families.shared.traits import Config, TraitsFromConfig, option

if TYPE_CHECKING:
    from torch import Tensor

    from adaptive.families.shared.rules import Forward
    from adaptive.stream.engines.chunk_pass import ChunkPass
    from adaptive.stream.engines.engine import Engine, Rule


def no_patches_in_time(config: Config) -> bool:
    """Whether a latent frame decodes to whole frames. If not, chunks cannot be streamed."""
    return bool(config.get("patch_size_t", 1) == 1)


def _doublings(config: Config) -> int:
    """Number of decoder blocks that double time and both sides of space; patches do the rest."""
    return sum(config.get("decoder_spatio_temporal_scaling", (True, True, True, False)))


class LtxFamily(Family):
    """`AutoencoderKLLTXVideo`. `rules` and `framewise`, as in `CausalFamily`, add to the tables below."""

    name = "ltx"
    layer_prefix = "LTXVideo"  # the class names of the layers begin with it
    proportional = True
    traits_from_config = TraitsFromConfig(
        latent_channels=option("latent_channels", 128),
        spatial_ratio=lambda config: config.get("patch_size", 4) * 2 ** _doublings(config),
        temporal_ratio=lambda config: config.get("patch_size_t", 1) * 2 ** _doublings(config),
        exact_streaming=no_patches_in_time,
    )

    def __init__(self, rules: Mapping[str, Rule], framewise: frozenset[str]) -> None:
        self.rules = {self.layer_prefix + name: rule for name, rule in _RULES.items()}
        self.rules |= {"SiLU": activation, **rules}
        blocks = {self.layer_prefix + name for name in _BLOCKS}
        self.framewise = framewise | blocks | _CONDITIONING | ALWAYS_FRAMEWISE

    def decode_engine(self, vae: Any, kwargs: Mapping[str, Any]) -> Engine:
        """The unmodified `vae.decoder` under this family's rules; without noise, its last block in strips."""
        from adaptive.stream.engines.engine import RuledEngine
        from adaptive.stream.engines.strips import StripEngine, Tail

        if not no_patches_in_time(vae.config):
            raise UnsupportedVae(type(vae).__name__, "streaming with patches in time")
        decoder = vae.decoder
        options: dict[str, Any] = {
            "rules": self.rules,
            "pointwise": self.framewise,
            "sink": decoder.conv_out,
            "kwargs": kwargs,
            "stages": _stages(decoder),
        }
        if not _has_strips(vae):
            return RuledEngine(decoder, seeded=_draws_noise(vae), **options)
        *before, entry = decoder.up_blocks
        tail = Tail(
            (decoder.conv_in, decoder.mid_block, *before), entry, (decoder.conv_out,), _halo(decoder)[0]
        )
        return StripEngine(decoder, tail=tail, **options)

    def strip_halo(self, vae: Any) -> float | None:
        """Strips go through the last block, before or behind the last upsampling."""
        if not _has_strips(vae):
            return None
        rows, scale = _halo(vae.decoder)
        return float(rows * scale * vae.config.get("patch_size", 4) / self.traits_of(vae).spatial_ratio)

    def encode_engine(self, vae: Any, kwargs: Mapping[str, Any]) -> Engine:
        """The unmodified `vae.encoder` under this family's rules, if it is causal (as published)."""
        from adaptive.stream.engines.engine import RuledEngine

        causal = kwargs.get("causal") or vae.config.get("encoder_causal", True)
        if not (causal and no_patches_in_time(vae.config)):
            raise UnsupportedVae(
                type(vae).__name__, "encoding in chunks with a non-causal or patched encoder"
            )
        return RuledEngine(
            vae.encoder, rules=self.rules, pointwise=self.framewise, sink=vae.encoder.conv_out, kwargs=kwargs
        )

    def clean_kwargs(self, vae: Any) -> dict[str, Any]:
        """A timestep-conditioned decoder also removes noise: none at timestep 0."""
        import torch

        conditioned = vae.config.get("timestep_conditioning")
        return {"temb": torch.zeros(1, dtype=vae.dtype)} if conditioned else {}

    def self_test_case(self, vae: Any) -> tuple[tuple[int, ...], dict[str, Any]]:
        """A timestep-conditioned decoder needs one timestep for each sample."""
        import torch

        shape, _ = super().self_test_case(vae)
        return shape, {"temb": torch.tensor([0.05])} if vae.config.get("timestep_conditioning") else {}


def _stages(decoder: Any) -> list[Any]:
    """The modules that the decoder's forward, and its blocks' own, call one after another."""
    stages = [decoder.conv_in, *decoder.mid_block.resnets]
    for block in decoder.up_blocks:
        stages += [] if block.conv_in is None else [block.conv_in]
        stages += [*(block.upsamplers or ()), *block.resnets]
    return stages


def _draws_noise(vae: Any) -> bool:
    flags = vae.config.get("decoder_inject_noise", ())
    return flags if isinstance(flags, bool) else any(flags)


def _has_strips(vae: Any) -> bool:
    """Noise is drawn for whole pictures, and forward hooks expect them."""
    from adaptive.stream.layer_checks import has_hooks

    return not _draws_noise(vae) and not has_hooks(vae.decoder.modules())


def _halo(decoder: Any) -> tuple[int, int]:
    """Rows of the last block's input on each side that a row of the result depends on; rows made of one."""
    entry = decoder.up_blocks[-1]
    scale = entry.upsamplers[0].stride[1] if entry.upsamplers else 1
    late = _reach(entry.resnets) + _reach(decoder.conv_out)
    return _reach(entry) - _reach(entry.resnets) + -(-late // scale), scale


def _reach(module: Any) -> int:
    """Rows on each side that a row depends on, through all convolutions of the module in turn."""
    return sum(layer.kernel_size[1] // 2 for layer in module.modules() if type(layer).__name__ == "Conv3d")


def _convolution(
    chunk_pass: ChunkPass, layer: Any, forward: Forward, frames: Tensor, **options: Any
) -> Tensor:
    """Temporal convolution; a kernel of one frame needs no state."""
    if layer.kernel_size[0] == 1 and layer.conv.stride[0] == 1:
        mixed = forward(frames, **options) if frames.shape[2] else chunk_pass.empty_output(frames, layer.conv)
        return chunk_pass.as_branch(layer, mixed)
    return chunk_pass.convolve(layer, frames, layer.conv, causal=_is_causal(layer, options))


def _residual_block(
    chunk_pass: ChunkPass,
    layer: Any,
    forward: Forward,
    frames: Tensor,
    temb: Any = None,
    generator: Any = None,
    **options: Any,
) -> Tensor:
    """Without causality the main branch lags behind the input, so the sum waits for it."""
    if chunk_pass.is_idle(frames, (layer.conv1, layer.conv2)):
        return frames.new_empty(frames.shape[0], layer.conv2.out_channels, 0, *frames.shape[3:])
    if _is_causal(layer.conv1, options) and _is_causal(layer.conv2, options):
        return forward(frames, temb, generator, **options)
    if layer.conv_shortcut is None:
        frames = chunk_pass.delayed_branch(layer, frames)
    else:
        chunk_pass.expect_branch(layer.conv_shortcut, layer)
    return forward(frames, temb, generator, **options)


def _upsample(chunk_pass: ChunkPass, layer: Any, _forward: Forward, frames: Tensor, **options: Any) -> Tensor:
    """A convolution, then channels to frames and pixels; the first frame of the stream gives one frame."""
    conv, (step, *_) = layer.conv, layer.stride
    causal = _is_causal(conv, options)
    pushed, centre = chunk_pass.push_centred(layer, frames, conv.kernel_size[0], causal=causal)
    chunk_pass.limit *= step
    chunk_pass.set_window(conv, pushed.window)
    out = channels_to_space(conv(frames, **options), layer.stride)
    if layer.residual and centre is not None:
        shuffled = channels_to_space(centre, layer.stride)
        out.add_(shuffled.repeat(1, out.shape[1] // shuffled.shape[1], 1, 1, 1))
    is_first = pushed.windows > 0 and pushed.state.emitted == pushed.windows
    return out[:, :, step - 1 :] if is_first else out


def _downsample(
    chunk_pass: ChunkPass, layer: Any, _forward: Forward, frames: Tensor, **options: Any
) -> Tensor:
    """Frames and pixels to channels: behind a convolution, plus the average of its input."""
    grouped = chunk_pass.groups(layer, frames, layer.stride[0])
    out = space_to_channels(layer.conv(grouped, **options), layer.stride)
    around = space_to_channels(grouped, layer.stride)
    batch, channels, *sides = around.shape
    averaged = around.reshape(batch, channels // layer.group_size, layer.group_size, *sides).mean(dim=2)
    return out.add_(averaged)


def _norm(_chunk_pass: ChunkPass, layer: Any, forward: Forward, frames: Tensor) -> Tensor:
    from adaptive.stream.layers.norms import root_mean_square

    return root_mean_square(layer, forward, frames)


def _is_causal(conv: Any, options: Mapping[str, Any]) -> bool:
    """LTX-2 passes `causal` with every call, LTX-Video's convolutions have an attribute."""
    return bool(options.get("causal", getattr(conv, "is_causal", True)))


_RULES: Mapping[str, Rule] = {
    "CausalConv3d": _convolution,
    "ResnetBlock3d": _residual_block,
    "Upsampler3d": _upsample,
    "Downsampler3d": _downsample,
}
_BLOCKS = ("Decoder3d", "MidBlock3d", "UpBlock3d", "Encoder3d", "DownBlock3D")
_CONDITIONING = {
    "LayerNorm", "PixArtAlphaCombinedTimestepSizeEmbeddings", "Timesteps", "TimestepEmbedding",
}  # fmt: skip

FAMILY = LtxFamily({"RMSNorm": _norm}, frozenset({"LTXVideo095DownBlock3D", "Conv3d"}))
