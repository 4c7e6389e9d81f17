"""HunyuanVideo 1.5: causal convolutions with replicate padding, and attention that looks back over all
frames, in decoder and encoder alike.

Owns the streaming rules of its temporal layers. The attention's keys and values of past frames are kept, so
the state grows with the video, by two latent-sized activations a latent frame. Torch is imported only where
used.
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
        "HunyuanVideo15Decoder3D", "HunyuanVideo15MidBlock", "HunyuanVideo15UpBlock3D",
        "HunyuanVideo15Encoder3D", "HunyuanVideo15DownBlock3D", "HunyuanVideo15ResnetBlock",
        "Conv3d", "ModuleList",
    }
)  # fmt: skip


class HunyuanVideo15Family(Family):
    """AutoencoderKLHunyuanVideo15."""

    name = "hunyuanvideo15"

    def traits(self, vae_class: str, config: Mapping[str, Any]) -> VaeTraits:
        """The configuration names both ratios."""
        return VaeTraits(
            family=self.name,
            vae_class=vae_class,
            latent_channels=config.get("latent_channels", 32),
            spatial_ratio=config.get("spatial_compression_ratio", 16),
            temporal_ratio=config.get("temporal_compression_ratio", 4),
            first_frame_alone=True,
            exact_streaming=True,
            frames_independent=False,
            mask_numbers=1,
        )

    def decode_engine(self, vae: Any, kwargs: Mapping[str, Any]) -> Engine:
        """The unmodified `vae.decoder` under this module's rules."""
        from adaptive.stream.engines.engine import RuledEngine
        from adaptive.stream.engines.stages import stages_of

        if kwargs:
            raise UnsupportedVae(type(vae).__name__, f"decoding with {', '.join(kwargs)}")
        return RuledEngine(
            vae.decoder,
            rules=_RULES,
            pointwise=_POINTWISE,
            sink=vae.decoder.conv_out,
            kwargs={},
            stages=stages_of(vae.decoder),
        )

    def encode_engine(self, vae: Any, kwargs: Mapping[str, Any]) -> Engine:
        """The unmodified `vae.encoder` under this module's rules: the first frame, then whole latent
        frames.
        """
        from adaptive.stream.engines.engine import RuledEngine

        if kwargs:
            raise UnsupportedVae(type(vae).__name__, f"encoding with {', '.join(kwargs)}")
        return RuledEngine(
            vae.encoder,
            rules=_RULES,
            pointwise=_POINTWISE,
            sink=vae.encoder.conv_out,
            kwargs={},
            group=self.traits(type(vae).__name__, vae.config).temporal_ratio,
        )

    def decode_whole(self, vae: Any, latents: Tensor, kwargs: Mapping[str, Any]) -> Tensor:
        """One call a sample: diffusers' attention mask does not fit a batch of two."""
        import torch

        return torch.cat([Family.decode_whole(self, vae, one, kwargs) for one in torch.split(latents, 1)])

    def encode_whole(self, vae: Any, video: Tensor, kwargs: Mapping[str, Any]) -> Tensor:
        """One call a sample, as in decoding."""
        import torch

        return torch.cat([Family.encode_whole(self, vae, one, kwargs) for one in torch.split(video, 1)])


def _conv(tick: Tick, module: Any, forward: Any, frames: Tensor) -> Tensor:  # noqa: ARG001 - replaced
    """Temporal window first, then the padding in space that the layer does together with it."""
    import torch.nn.functional as F

    size = module.conv.kernel_size[0]
    left, right, top, bottom, *_ = module.time_causal_padding
    window = tick.push_causal(module, frames, size)
    window = F.pad(window, (left, right, top, bottom, 0, 0), mode=module.pad_mode)  # the unpadded one goes
    convolved: Tensor = module.conv(window)
    return convolved


def _norm(tick: Tick, module: Any, forward: Any, frames: Tensor) -> Tensor:  # noqa: ARG001 - a rule
    from adaptive.stream.layers.norms import unit_length

    return unit_length(module, forward, frames)


def _upsample(tick: Tick, module: Any, forward: Any, frames: Tensor) -> Tensor:
    """The stream's first frame gives one frame, every later one gives two."""
    if not module.add_temporal_upsample:
        return forward(frames)  # type: ignore[no-any-return]
    if tick.first(module):
        return forward(frames)  # type: ignore[no-any-return]
    out: Tensor = module._dcae_upsample_rearrange(module.conv(frames), r1=2)
    shortcut: Tensor = module._dcae_upsample_rearrange(frames, r1=2)
    return out.add_(shortcut.repeat_interleave(repeats=module.repeats, dim=1))


def _downsample(tick: Tick, module: Any, forward: Any, frames: Tensor) -> Tensor:
    """The stream's first frame gives one frame, every later pair gives one."""
    if not module.add_temporal_downsample or tick.first(module):
        return forward(frames)  # type: ignore[no-any-return]
    out: Tensor = module._dcae_downsample_rearrange(module.conv(frames), r1=2)
    packed: Tensor = module._dcae_downsample_rearrange(frames, r1=2)
    batch, channels, *sides = packed.shape
    return out.add_(
        packed.reshape(batch, channels // module.group_size, module.group_size, *sides).mean(dim=2)
    )


def _attention(tick: Tick, module: Any, forward: Any, frames: Tensor) -> Tensor:  # noqa: ARG001 - replaced
    """Each frame attends to itself and to all before it, which needs no mask when frames are taken one by
    one.
    """
    import torch
    from torch.nn.functional import scaled_dot_product_attention as attend

    batch, channels, count, height, width = frames.shape
    normed = module.norm(frames)
    query, key, value = (_tokens(project(normed)) for project in (module.to_q, module.to_k, module.to_v))
    keys, values = tick.remember(module, key, value, dim=2)
    area = height * width
    before = keys.shape[2] - count * area
    looked = [
        attend(query[:, :, i * area : (i + 1) * area], keys[:, :, :end], values[:, :, :end])
        for i, end in enumerate(range(before + area, keys.shape[2] + 1, area))
    ]
    mixed = torch.cat(looked, 2).squeeze(1).reshape(batch, count, height, width, channels)
    projected: Tensor = module.proj_out(mixed.permute(0, 4, 1, 2, 3))
    return projected + frames


def _tokens(frames: Tensor) -> Tensor:
    """`[B, C, T, H, W]` to `[B, 1, T*H*W, C]`."""
    return frames.flatten(2).permute(0, 2, 1).unsqueeze(1).contiguous()


_RULES: Mapping[str, Rule] = {
    "HunyuanVideo15CausalConv3d": _conv,
    "HunyuanVideo15Upsample": _upsample,
    "HunyuanVideo15Downsample": _downsample,
    "HunyuanVideo15AttnBlock": _attention,
    "HunyuanVideo15RMS_norm": _norm,
    "SiLU": activation,
}

FAMILY = HunyuanVideo15Family()
