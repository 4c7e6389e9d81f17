"""HunyuanVideo 1.0 (its VAE also serves Kandinsky 5, FramePack and SkyReels): norms over all frames, so
exactness takes a layer sweep.

diffusers decodes overlapping tiles of time and cross-fades them, which changes the result. Here the whole
video is one: layer by layer, with activations in host memory, a few frames on the device. Convolutions are
causal, with replicate padding; the middle attention looks back over all latent positions, whose keys and
values are on the device while it runs. Torch is imported only where used.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from adaptive.errors import UnsupportedVae
from adaptive.families.shared.family import Family
from adaptive.types import VaeTraits

if TYPE_CHECKING:
    from torch import Tensor

    from adaptive.stream.engines.engine import Engine, State


class HunyuanVideoFamily(Family):
    """AutoencoderKLHunyuanVideo."""

    name = "hunyuanvideo"
    parks_activations = True

    def traits(self, vae_class: str, config: Mapping[str, Any]) -> VaeTraits:
        """The configuration names both ratios."""
        return VaeTraits(
            family=self.name,
            vae_class=vae_class,
            latent_channels=config.get("latent_channels", 16),
            spatial_ratio=config.get("spatial_compression_ratio", 8),
            temporal_ratio=config.get("temporal_compression_ratio", 4),
            first_frame_alone=True,
            exact_streaming=True,
            frames_independent=False,
            mask_numbers=3.5,  # in half precision: made in single precision, by way of booleans
        )

    def decode_engine(self, vae: Any, kwargs: Mapping[str, Any]) -> Engine:
        """A sweep in the first step, frames from then on; weights must be on the device while it runs."""
        offloaded = {"_hf_hook", "_diffusers_hook"}  # by layers: norms are computed here, not called
        if kwargs or any(offloaded & vars(module).keys() for module in vae.decoder.modules()):
            raise UnsupportedVae(type(vae).__name__, "layer sweeps with these arguments or offloaded layers")
        if any(module._compiled_call_impl is not None for module in vae.decoder.modules()):
            raise UnsupportedVae(type(vae).__name__, "layer sweeps through compiled layers")
        return _sweep_engine(vae)


def _sweep_engine(vae: Any) -> Engine:
    from adaptive.stream.engines.sweep import replicated

    decoder = vae.decoder
    last = decoder.conv_out

    class Sweep:
        """All latents go in with the first step, whose limit is how many frames are on the device at once."""

        def take(self, position: int, wanted: int, total: int) -> int:  # noqa: ARG002 - all or none
            """Latents are small: all of them at once."""
            return total - position

        def advance(
            self,
            state: State,
            chunk: Tensor,
            *,
            limit: int,
            ended: bool,  # noqa: ARG002 - all are fed at once
        ) -> tuple[Tensor | None, State]:
            """The last norm and convolution run as frames are asked for."""
            if not state:
                reel, norm = _swept(decoder, vae.post_quant_conv(chunk), limit)
                state = {"reel": reel, "norm": norm, "next": 0}
            reel, start = state["reel"], state["next"]
            stop = min(len(reel), start + limit)
            before = last.conv.kernel_size[0] - 1
            window = reel.frames(max(0, start - before), stop)
            window = decoder.conv_act(state["norm"].normalized(window))
            window = replicated(window, before + stop - start)
            return _in_space(last, window), {**state, "next": stop}

    return Sweep()


def _swept(decoder: Any, latents: Tensor, size: int) -> Any:
    """Reel of what the last norm takes, and what it must know of all frames."""
    from adaptive.stream.engines.sweep import gathered

    device = latents.device
    starts = range(0, latents.shape[2], size)
    chunks: Iterable[Tensor] = (latents[:, :, start : start + size] for start in starts)
    chunks = _causal(decoder.conv_in, chunks)
    middle = decoder.mid_block
    chunks = _resnet(middle.resnets[0], chunks, size, device)
    for attention, block in zip(middle.attentions, middle.resnets[1:], strict=True):
        if attention is not None:
            chunks = _attention(attention, chunks, size, device)
        chunks = _resnet(block, chunks, size, device)
    for up_block in decoder.up_blocks:
        for block in up_block.resnets:
            chunks = _resnet(block, chunks, size, device)
        for upsampler in up_block.upsamplers or ():
            chunks = _causal(upsampler.conv, _upsampled(chunks, upsampler.upsample_factor))
    return gathered(chunks, decoder.conv_norm_out, device)


def _in_space(conv: Any, window: Tensor) -> Tensor:
    """The layer's convolution over a window that is already padded in time."""
    import torch.nn.functional as F

    left, right, top, bottom, *_ = conv.time_causal_padding
    convolved: Tensor = conv.conv(F.pad(window, (left, right, top, bottom, 0, 0), mode=conv.pad_mode))
    return convolved


def _causal(conv: Any, chunks: Iterable[Tensor]) -> Iterator[Tensor]:
    """A causal convolution over a video given in chunks."""
    import torch

    from adaptive.stream.engines.sweep import replicated

    before = conv.conv.kernel_size[0] - 1
    tail = None
    for chunk in chunks:
        window = replicated(chunk, before + chunk.shape[2]) if tail is None else torch.cat([tail, chunk], 2)
        del chunk
        tail = window[:, :, window.shape[2] - before :].clone()
        yield _in_space(conv, window)
        del window


def _resnet(block: Any, chunks: Iterable[Tensor], size: int, device: Any) -> Iterator[Tensor]:
    """A residual block: the first norm's statistics; first norm and convolution with the second norm's
    statistics; the rest.
    """
    from adaptive.stream.engines.sweep import gathered

    inputs, first = gathered(chunks, block.norm1, device)
    activated = (block.nonlinearity(first.normalized(piece)) for piece in inputs.pieces(size))
    hidden, second = gathered(_causal(block.conv1, activated), block.norm2, device)
    activated = (block.dropout(block.nonlinearity(second.normalized(each))) for each in hidden.drained(size))
    for mixed in _causal(block.conv2, activated):
        shortcut = inputs.take(mixed.shape[2])
        if block.conv_shortcut is not None:
            shortcut = block.conv_shortcut(shortcut)  # a kernel of one frame
        yield mixed.add_(shortcut)
        del mixed, shortcut


def _upsampled(chunks: Iterable[Tensor], factors: tuple[int, int, int]) -> Iterator[Tensor]:
    """Nearest neighbours in space and, but for the video's first frame, in time."""
    import torch

    times, rows, columns = (int(factor) for factor in factors)
    first = True
    for chunk in chunks:
        out = chunk[:, :, 1:] if first else chunk
        out = out.repeat_interleave(times, dim=2) if times > 1 else out
        out = torch.cat([chunk[:, :, :1], out], 2) if first else out
        first = False
        del chunk
        yield out.repeat_interleave(rows, dim=3).repeat_interleave(columns, dim=4)
        del out


def _attention(attention: Any, chunks: Iterable[Tensor], size: int, device: Any) -> Iterator[Tensor]:
    """Every frame attends to all positions of itself and of all frames before it."""
    from adaptive.stream.engines.sweep import gathered

    inputs, norm = gathered(chunks, attention.group_norm, device)
    total, past = len(inputs), 0
    memory: list[Tensor] = []
    for piece in inputs.drained(size):
        area = piece.shape[3] * piece.shape[4]
        tokens = norm.normalized(piece).flatten(2).transpose(1, 2)
        query, *found = (
            project(tokens).unflatten(-1, (attention.heads, -1)).transpose(1, 2)
            for project in (attention.to_q, attention.to_k, attention.to_v)
        )
        if not memory:
            memory = [part.new_empty(*part.shape[:2], total * area, part.shape[3]) for part in found]
        mixed = _look_back(query, found, memory, past, area).transpose(1, 2).flatten(2)
        mixed = attention.to_out[1](attention.to_out[0](mixed)).transpose(1, 2).reshape(piece.shape)
        past += piece.shape[2]
        yield (mixed + piece) / attention.rescale_output_factor
        del piece, tokens, query, found, mixed


def _look_back(query: Tensor, found: list[Tensor], memory: list[Tensor], past: int, area: int) -> Tensor:
    """Attention of some frames, `past` of which came before; keys and values `found` now join `memory`."""
    import torch
    from torch.nn.functional import scaled_dot_product_attention as attend

    start = past * area
    for part, whole in zip(found, memory, strict=True):
        whole[:, :, start : start + part.shape[2]] = part
    ends = range(start + area, start + query.shape[2] + 1, area)
    keys, values = memory
    looked = [
        attend(own, keys[:, :, :end], values[:, :, :end])
        for own, end in zip(torch.split(query, area, 2), ends, strict=True)
    ]
    return torch.cat(looked, 2)


FAMILY = HunyuanVideoFamily()
