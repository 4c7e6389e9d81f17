"""LTX-Video (0.9, 0.9.1, 0.9.5, 0.9.7): convolutions with replicate padding, causal or not, norms within a
position.

Owns the streaming rules of its temporal layers: the convolution, the residual block (whose two branches have
different delays when the decoder is not causal) and the pixel-shuffle upsampler. Torch is imported only where
an engine is made.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from adaptive.errors import UnsupportedVae
from adaptive.families.shared.family import Family, activation
from adaptive.types import VaeTraits

if TYPE_CHECKING:
    from torch import Tensor

    from adaptive.stream.engines.chunk_pass import Tick
    from adaptive.stream.engines.engine import Engine, Rule

_POINTWISE = frozenset(
    {
        "LTXVideoDecoder3d", "LTXVideoMidBlock3d", "LTXVideoUpBlock3d", "LTXVideoEncoder3d",
        "LTXVideoDownBlock3D", "LTXVideo095DownBlock3D", "LayerNorm", "Conv3d", "Dropout",
        "ModuleList", "Linear", "PixArtAlphaCombinedTimestepSizeEmbeddings", "Timesteps", "TimestepEmbedding",
    }
)  # fmt: skip


class LtxFamily(Family):
    """AutoencoderKLLTXVideo."""

    name = "ltx"
    proportional = True

    def __init__(self, rules: Mapping[str, Rule], pointwise: frozenset[str]) -> None:
        self.rules = rules
        self.pointwise = pointwise

    def traits(self, vae_class: str, config: Mapping[str, Any]) -> VaeTraits:
        """Each scaled block of the decoder doubles time and both sides of space; patching does the rest."""
        scaled = sum(config.get("decoder_spatio_temporal_scaling", (True, True, True, False)))
        patch_frames = config.get("patch_size_t", 1)
        return VaeTraits(
            family=self.name,
            vae_class=vae_class,
            latent_channels=config.get("latent_channels", 128),
            spatial_ratio=config.get("patch_size", 4) * 2**scaled,
            temporal_ratio=patch_frames * 2**scaled,
            first_frame_alone=True,
            exact_streaming=patch_frames == 1,
            frames_independent=False,
        )

    def decode_engine(self, vae: Any, kwargs: Mapping[str, Any]) -> Engine:
        """The unmodified `vae.decoder` under this module's rules."""
        from adaptive.stream.engines.engine import RuledEngine
        from adaptive.stream.engines.strips import StripEngine, Tail

        if not self.traits(type(vae).__name__, vae.config).exact_streaming:
            raise UnsupportedVae(type(vae).__name__, "streaming with patches in time")
        decoder = vae.decoder
        options: dict[str, Any] = {
            "rules": self.rules,
            "pointwise": self.pointwise,
            "sink": decoder.conv_out,
            "kwargs": kwargs,
            "stages": _stages(decoder),
        }
        if _seeded(vae):  # noise is drawn for whole pictures
            return RuledEngine(decoder, seeded=True, **options)
        *before, entry = decoder.up_blocks
        tail = Tail(
            (decoder.conv_in, decoder.mid_block, *before), entry, (decoder.conv_out,), _halo(decoder)[0]
        )
        return StripEngine(decoder, tail=tail, **options)

    def strip_halo(self, vae: Any) -> float | None:
        """Strips go through the last block, which works at half or all of the last upsampling."""
        if _seeded(vae):
            return None
        rows, scale = _halo(vae.decoder)
        ratio = self.traits(type(vae).__name__, vae.config).spatial_ratio
        return float(rows * scale * vae.config.get("patch_size", 4) / ratio)

    def encode_engine(self, vae: Any, kwargs: Mapping[str, Any]) -> Engine:
        """The unmodified `vae.encoder` under this module's rules, where it is causal (as published)."""
        from adaptive.stream.engines.engine import RuledEngine

        if not (self._encoder_causal(vae, kwargs) and vae.config.get("patch_size_t", 1) == 1):
            raise UnsupportedVae(
                type(vae).__name__, "encoding in chunks with a non-causal or patched encoder"
            )
        return RuledEngine(
            vae.encoder, rules=self.rules, pointwise=self.pointwise, sink=vae.encoder.conv_out, kwargs=kwargs
        )

    def _encoder_causal(self, vae: Any, kwargs: Mapping[str, Any]) -> bool:
        return bool(kwargs.get("causal") or vae.config.get("encoder_causal", True))

    def clean_kwargs(self, vae: Any) -> dict[str, Any]:
        """Timestep-conditioned decoders also take noise away: none, at timestep 0."""
        import torch

        conditioned = vae.config.get("timestep_conditioning")
        return {"temb": torch.zeros(1, dtype=vae.dtype)} if conditioned else {}

    def self_test_case(self, vae: Any) -> tuple[tuple[int, ...], dict[str, Any]]:
        """Timestep-conditioned decoders need one timestep a sample."""
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


def _seeded(vae: Any) -> bool:
    return _any(vae.config.get("decoder_inject_noise", ()))


def _halo(decoder: Any) -> tuple[int, int]:
    """Rows of the last block's input that a row of the result depends on to either side; rows made of one."""
    entry = decoder.up_blocks[-1]
    scale = entry.upsamplers[0].stride[1] if entry.upsamplers else 1
    late = _reach(entry.resnets) + _reach(decoder.conv_out)
    return _reach(entry) - _reach(entry.resnets) + -(-late // scale), scale


def _reach(module: Any) -> int:
    """Rows on either side that a row depends on, through every convolution of the module in turn."""
    return sum(layer.kernel_size[1] // 2 for layer in module.modules() if type(layer).__name__ == "Conv3d")


def _any(flags: bool | tuple[bool, ...]) -> bool:
    return flags if isinstance(flags, bool) else any(flags)


def conv(tick: Tick, module: Any, forward: Any, frames: Tensor, **options: Any) -> Tensor:
    """Temporal convolution; a kernel of one frame needs no state."""
    if module.kernel_size[0] == 1 and module.conv.stride[0] == 1:
        mixed = forward(frames, **options) if frames.shape[2] else tick.no_frames(frames, module.conv)
        return tick.as_branch(module, mixed)
    return tick.convolve(module, frames, module.conv, causal=_causal(module, options))


def resnet(
    tick: Tick,
    module: Any,
    forward: Any,
    frames: Tensor,
    temb: Any = None,
    generator: Any = None,
    **options: Any,
) -> Tensor:
    """Residual block: without causality the main branch lags behind its input, so the sum waits for it."""
    if tick.idle(frames, (module.conv1, module.conv2)):
        return frames.new_empty(frames.shape[0], module.conv2.out_channels, 0, *frames.shape[3:])
    if _causal(module.conv1, options) and _causal(module.conv2, options):
        return forward(frames, temb, generator, **options)  # type: ignore[no-any-return]
    if module.conv_shortcut is None:
        frames = tick.delayed(module, frames)
    else:
        tick.expect_branch(module.conv_shortcut, module)
    return forward(frames, temb, generator, **options)  # type: ignore[no-any-return]


def _norm(tick: Tick, module: Any, forward: Any, frames: Tensor) -> Tensor:  # noqa: ARG001 - a rule
    from adaptive.stream.layers.norms import root_mean_square

    return root_mean_square(module, forward, frames)


def upsampler(tick: Tick, module: Any, forward: Any, frames: Tensor, **options: Any) -> Tensor:  # noqa: ARG001
    """Convolution, then channels to frames and pixels; the very first input frame loses all but one frame."""
    conv, (step, *_) = module.conv, module.stride
    pushed, centre = tick.push_centred(module, frames, conv.kernel_size[0], causal=_causal(conv, options))
    tick.limit *= step
    tick.prepare(conv, pushed.window)
    out = channels_to_space(conv(frames, **options), module.stride)
    if module.residual and centre is not None:
        shuffled = channels_to_space(centre, module.stride)
        out.add_(shuffled.repeat(1, out.shape[1] // shuffled.shape[1], 1, 1, 1))
    is_first = pushed.windows > 0 and pushed.held.emitted == pushed.windows
    return out[:, :, step - 1 :] if is_first else out


def downsampler(tick: Tick, module: Any, forward: Any, frames: Tensor, **options: Any) -> Tensor:  # noqa: ARG001
    """Groups of frames and pixels to channels, after a convolution and, averaged, around it."""
    grouped = tick.groups(module, frames, module.stride[0])
    out = space_to_channels(module.conv(grouped, **options), module.stride)
    around = space_to_channels(grouped, module.stride)
    batch, channels, *sides = around.shape
    averaged = around.reshape(batch, channels // module.group_size, module.group_size, *sides).mean(dim=2)
    return out.add_(averaged)


def _causal(conv: Any, options: Mapping[str, Any]) -> bool:
    """LTX-Video's convolutions know whether they are causal, LTX-2's are told."""
    return bool(options.get("causal", getattr(conv, "is_causal", True)))


def channels_to_space(frames: Tensor, stride: tuple[int, int, int]) -> Tensor:
    """`[B, c*p*q*r, T, H, W]` to `[B, c, T*p, H*q, W*r]`."""
    p, q, r = stride
    batch, channels, count, height, width = frames.shape
    split = frames.reshape(batch, channels // (p * q * r), p, q, r, count, height, width)
    return split.permute(0, 1, 5, 2, 6, 3, 7, 4).flatten(6, 7).flatten(4, 5).flatten(2, 3)


def space_to_channels(frames: Tensor, stride: tuple[int, int, int]) -> Tensor:
    """`[B, c, T*p, H*q, W*r]` to `[B, c*p*q*r, T, H, W]`."""
    p, q, r = stride
    batch, channels, count, height, width = frames.shape
    split = frames.reshape(batch, channels, count // p, p, height // q, q, width // r, r)
    return split.permute(0, 1, 3, 5, 7, 2, 4, 6).flatten(1, 4)


RULES: Mapping[str, Rule] = {
    "LTXVideoDownsampler3d": downsampler,
    "LTXVideoCausalConv3d": conv,
    "LTXVideoResnetBlock3d": resnet,
    "LTXVideoUpsampler3d": upsampler,
    "RMSNorm": _norm,
    "SiLU": activation,
}

FAMILY = LtxFamily(RULES, _POINTWISE)
